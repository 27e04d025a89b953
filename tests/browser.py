"""JupyterLab as a learner sees it: a server of its own, and what hands do there in a browser."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
from playwright.sync_api import Locator, Page

from notebooks import ROOT

SCREENSHOTS = ROOT / "tests" / "screenshots"
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
PATIENCE = 120_000  # milliseconds; the cores may be busy with other work
ERRORS = "[data-mime-type='application/vnd.jupyter.error']"
READY = """() => {
    const kernel = document.querySelector(".jp-Toolbar-kernelName")?.textContent
    return kernel?.startsWith("Python") && document.querySelector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
}"""  # "No Kernel" is idle too
FINISHED = f"""() => {{
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")].map(each => each.textContent)
    const waiting = prompts.some(each => each == "[ ]:") && !document.querySelector("{ERRORS}")
    return prompts.length && !waiting && !prompts.includes("[*]:")
}}"""


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def jupyter_lab(root: Path, home: Path, **environment: str) -> Iterator[str]:
    """Serve `root` on this machine alone and give the address; whatever Jupyter reads or writes of its own is below `home`."""
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": root,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": "",
        "LabApp.user_settings_dir": home / "settings",
        "LabApp.workspaces_dir": home / "workspaces",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        *(f"--{key}={value}" for key, value in options.items()),
    ]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(
            command,
            env={**os.environ, **folders, **environment},
            cwd=root,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for_server(address, server, home / "server.log")
        yield address
    finally:
        server.terminate()  # and with it the kernels
        server.wait(30)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/api/status", timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"JupyterLab did not start:\n{log.read_text()}")


def open_notebook(page: Page, address: str, path: str, interface: str = "lab/tree") -> None:
    """Open a notebook and wait for its kernel; "notebooks" is the interface of `jupyter notebook`, which suits a phone."""
    page.goto(f"{address}/{interface}/{path}?reset")  # without the tabs that were open last
    page.wait_for_function(READY)


def choose(page: Page, menu: str, item: str) -> None:
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}")).click()


def run_all(page: Page) -> None:
    """Run > Run All Cells, and wait until all have run, or one has failed."""
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(FINISHED)


def cell(page: Page, notebook: nbformat.NotebookNode, cell_id: str) -> Locator:
    """The cell of that id on the page: the page does not know ids, but has the cells in their order."""
    return page.locator(".jp-Cell").nth([each.id for each in notebook.cells].index(cell_id))


def slider(place: Locator, label: str) -> Locator:
    """The handle of the slider with that label, which takes the arrow keys."""
    named = place.locator(".widget-slider").filter(has=place.page.get_by_text(label, exact=True))
    return named.get_by_role("slider")


def take_picture(page: Page, name: str, of: Locator | None = None) -> None:
    """Keep what the page shows, or a part of it, as tests/screenshots/<name>.png."""
    (of or page).screenshot(path=SCREENSHOTS / f"{name}.png")
