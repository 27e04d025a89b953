"""A run that cannot be lost: what the fault harness (tests/faults.py) found, in a process that conftest.py starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults import CONFIG, FAULTS


@pytest.fixture(scope="module")
def table(request):
    """What the harness found: for each fault the times it was tried, the most steps lost, and whether all ended equal."""
    harness = request.config.harness
    output, errors = harness.communicate(timeout=600 + 10 * request.config.getoption("kills"))
    assert harness.returncode == 0, output + errors[-3_000:]
    lines = re.findall(r"^(.+?) +(\d+) +(\d+) +(yes|NO)$", output, re.MULTILINE)
    return {fault: (int(times), int(lost), equal == "yes") for fault, times, lost, equal in lines}


def test_its_one_thread_and_its_path_are_its_own_and_not_the_other_tests():
    look = "import os; before = dict(os.environ); import faults; assert dict(os.environ) == before"
    without = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    subprocess.run([sys.executable, "-c", look], cwd=Path(__file__).parent, env=without, check=True)


def test_after_every_fault_the_run_ends_bit_for_bit_as_if_nothing_had_happened(table):
    assert len(table) == len(FAULTS)
    for fault, (times, _, equal) in table.items():
        assert equal and times > 0, fault


def test_as_many_processes_were_killed_as_asked(table, request):
    killed = [times for fault, (times, *_) in table.items() if "SIGKILL" in fault or "the same" in fault]
    assert len(killed) == 4 and sum(killed) >= request.config.getoption("kills")


def test_a_kill_costs_at_most_the_steps_since_the_last_save(table):
    for fault, (_, lost, _) in table.items():
        if "SIGKILL" in fault and "machine" not in fault:
            assert lost <= CONFIG.save_every, fault
        if "thread" in fault:  # the newest may not have been written yet
            assert lost <= 2 * CONFIG.save_every, fault


def test_what_the_log_said_to_be_mirrored_comes_back_to_a_new_machine(table):
    for fault, (_, lost, _) in table.items():
        if "then the machine" in fault or "SIGKILL, and the machine" in fault:
            assert lost == 0, fault


def test_a_signal_that_asks_and_a_torn_log_cost_nothing(table):
    for fault, (_, lost, _) in table.items():
        if fault.startswith(("SIGTERM", "SIGINT", "SIGHUP", "the log")):
            assert lost == 0, fault
