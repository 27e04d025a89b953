"""No fault ends a run: the results of the fault harness, tests/faults.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import CONFIG, FAULTS


@pytest.fixture(scope="module")
def table(request):
    """The results: for each fault, how often it was tried, the most steps lost, and whether all runs ended equal."""
    kills = request.config.getoption("kills")
    command = [sys.executable, Path(__file__).with_name("faults.py"), "--kills", str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600 + 10 * kills)
    assert done.returncode == 0, done.stdout + done.stderr[-3_000:]
    lines = re.findall(r"^(.+?) +(\d+) +(\d+) +(yes|NO)$", done.stdout, re.MULTILINE)
    return {fault: (int(times), int(lost), equal == "yes") for fault, times, lost, equal in lines}


def test_importing_the_harness_does_not_change_the_environment_of_other_tests():
    look = "import os; before = dict(os.environ); import faults; assert dict(os.environ) == before"
    without = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    subprocess.run([sys.executable, "-c", look], cwd=Path(__file__).parent, env=without, check=True)


def test_after_every_fault_the_finished_run_equals_an_uninterrupted_one_bit_for_bit(table):
    assert len(table) == len(FAULTS)
    for fault, (times, _, equal) in table.items():
        assert equal and times > 0, fault


def test_as_many_processes_are_killed_as_requested(table, request):
    killed = [times for fault, (times, *_) in table.items() if "SIGKILL" in fault]
    assert len(killed) == 4 and sum(killed) >= request.config.getoption("kills")


def test_a_kill_loses_at_most_the_steps_since_the_last_save(table):
    for fault, (_, lost, _) in table.items():
        if "SIGKILL" in fault and "machine" not in fault and "background" not in fault:
            assert lost <= CONFIG.save_every, fault
        if "background" in fault:  # the newest save may not have been written yet
            assert lost <= 2 * CONFIG.save_every, fault


def test_every_step_reported_as_mirrored_is_restored_on_a_new_machine(table):
    for fault, (_, lost, _) in table.items():
        if "then the machine" in fault or "loss of the machine" in fault:
            assert lost == 0, fault


def test_termination_signals_and_a_log_that_was_cut_off_lose_no_step(table):
    for fault, (_, lost, _) in table.items():
        if fault.startswith(("SIGTERM", "SIGINT", "SIGHUP", "the log")):
            assert lost == 0, fault
