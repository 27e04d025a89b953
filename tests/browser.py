"""A JupyterLab server for the tests, and what a learner does there in a browser."""

import json
import os
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
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells outside the window stay in the page
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"adaptive-theme": True},  # light or dark, like the browser
}
PHONE = 400  # pixels wide
PATIENCE = 120_000  # milliseconds; the cores may be busy with other work
FAILED = "Traceback (most recent call last)"
READY = """() => {
    const kernel = document.querySelector(".jp-Toolbar-kernelName")?.textContent
    return kernel?.startsWith("Python") && document.querySelector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
}"""  # the status is idle without a kernel, too
PROMPTS = '[...document.querySelectorAll(".jp-CodeCell .jp-InputArea-prompt")].map(each => each.textContent)'


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def jupyter_lab(root: Path, home: Path, **environment: str) -> Iterator[str]:
    """Serve `root` on this machine only, and yield the address. Jupyter keeps its own files below `home`."""
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
        server.terminate()  # this ends its kernels, too
        server.wait(30)


def wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end and server.poll() is None:
        with suppress(OSError), urllib.request.urlopen(f"{address}/api/status", timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(f"JupyterLab did not start:\n{log.read_text()}")


def open_notebook(page: Page, address: str, path: str, interface: str = "lab/tree") -> None:
    """Open a notebook and wait for its kernel. The interface "notebooks", as in Jupyter Notebook, suits a phone."""
    page.goto(f"{address}/{interface}/{path}?reset")  # without the tabs that were open last
    page.wait_for_function(READY)


def run(page: Page, which: str) -> None:
    """Choose an entry of the Run menu, such as Run All Cells, and wait until a cell runs."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text(which, exact=True).click()
    page.wait_for_function(f"() => {PROMPTS}.includes('[*]:')")


def wait_until_all_ran(page: Page, well: bool = True) -> None:
    """Wait until no cell is running or queued. If `well`, check that all cells have run and none has failed."""
    page.wait_for_function(f"() => !{PROMPTS}.includes('[*]:')")
    if well:
        assert not page.get_by_text(FAILED).count(), page.get_by_text(FAILED).inner_text()
        assert "[ ]:" not in page.evaluate(PROMPTS)


def cell(page: Page, notebook: nbformat.NotebookNode, cell_id: str) -> Locator:
    """Return the cell with this id. The page does not contain ids, but it has the cells in order."""
    return page.locator(".jp-Cell").nth([each.id for each in notebook.cells].index(cell_id))


def slider(place: Locator) -> Locator:
    """Return the handle of a slider, which responds to the arrow keys, Home and End."""
    return place.get_by_role("slider")


def take_picture(page: Page, name: str, of: Locator | None = None) -> None:
    """Save a picture of a part of the page, or of the whole notebook, as tests/screenshots/<name>.png."""
    window = page.viewport_size
    part = of or page.locator(".jp-Notebook")
    height = part.evaluate("part => (part.querySelector('.jp-WindowedPanel-outer') || part).scrollHeight")
    page.set_viewport_size({"width": window["width"], "height": height + 300})
    part.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.set_viewport_size(window)


@contextmanager
def changes(place: Locator) -> Iterator[None]:
    """Wait, after the block, until the content of `place` differs from before."""
    before, element = place.inner_html(), place.element_handle()
    yield
    place.page.wait_for_function("([element, before]) => element.innerHTML != before", arg=[element, before])


def reopen_on_a_phone(page: Page, address: str, path: str) -> None:
    """Save the notebook and open it again, with its running kernel, on a page as wide as a phone."""
    with page.expect_response(lambda reply: reply.request.method == "PUT" and "/api/contents/" in reply.url):
        page.locator("[data-command='docmanager:save']").click()
    open_notebook(page, address, path, "notebooks")
    page.set_viewport_size({"width": PHONE, "height": 850})
    page.wait_for_function(f"() => document.querySelector('.jp-Notebook').clientWidth <= {PHONE}")


def too_wide(page: Page) -> list[str]:
    """Return the parts of texts and outputs that extend beyond the page, except those that scroll, such as code."""
    return page.evaluate("""() => [...document.querySelectorAll(".jp-RenderedMarkdown *, .jp-OutputArea-output *")]
        .filter(part => part.getBoundingClientRect().right > window.innerWidth)
        .filter(part => !part.closest("pre, [style*='overflow-x: auto']"))
        .map(part => part.outerHTML.slice(0, 200))""")
