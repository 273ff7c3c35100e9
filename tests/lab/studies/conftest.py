"""Data of the tiny base recipe, and the folder in which several studies share their runs."""

from pathlib import Path

import pytest

from prefrec.data import PreparedData
from prefrec.intake import prepare
from prefrec_lab.study_tools.carry_out import carry_out


@pytest.fixture(scope="session")
def data(base) -> PreparedData:
    return prepare(base.data)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def summary(request, base, place):
    """The results of the module's STUDY on the tiny recipe."""
    return carry_out(request.module.STUDY, base, [0], place)
