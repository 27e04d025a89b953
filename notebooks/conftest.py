"""Run the five notebooks in order in one process, and let nbval compare their stored outputs."""

import pytest


def pytest_itemcollected(item):
    item.add_marker(pytest.mark.xdist_group("notebooks"))


def pytest_collection_modifyitems(items):
    """Add the execution counts that nbval expects beside a stored output, and that nbstripout removes."""
    for item in items:
        if hasattr(item, "cell") and item.cell.outputs:
            item.cell.execution_count = 1
