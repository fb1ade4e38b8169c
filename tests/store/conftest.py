import pytest
from made import begin

from eedkit.store.cells import Cell, Store


@pytest.fixture
def store(tmp_path) -> Store:
    """A new store."""
    return Store(str(tmp_path / "study"))


@pytest.fixture
def cell(store) -> Cell:
    """A cell of three blocks that is begun in it."""
    cell = Cell("digits/test", "C2", "m")
    begin(store, cell)
    return cell
