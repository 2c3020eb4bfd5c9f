"""What a lesson says where something is missing: one line, which names it and the remedy."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from minilora.course import ready
from minilora.course.ready import NotReady
from minilora.errors import MiniloraError
from tools.project import pyproject


@pytest.fixture
def installed(monkeypatch):
    """A machine on which exactly these packages are, by their versions."""
    there = {name: "9999.0" for name in [*ready.requirements(), *ready.requirements("hub")]}

    def version(name):
        if name not in there:
            raise metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(ready.metadata, "version", version)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    return there


def test_all_is_here(installed, capsys, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert ready.start() in ("cpu", "cuda")
    assert (
        capsys.readouterr().out
        == f"minilora {ready.importlib.import_module('minilora').__version__} is ready\n"
    )
    assert "PYTHONPATH" not in os.environ


def test_programs_find_a_course_that_the_first_cell_has_put_on_the_path(installed, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setattr(sys, "path", [str(ready.ROOT), *sys.path])
    for _ in range(2):
        ready.start()
        assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ready.ROOT), "/elsewhere"])


@pytest.mark.parametrize(
    "name, version, told",
    [
        ("numpy", None, "the course needs numpy: run `%pip install numpy`, then run this cell"),
        ("torch", "2.4.1+cu121", "torch 2.4.1.cu121 is too old .* `%pip install -U 'torch>=2.5'`"),
        ("tokenizers", "0.9.2", "tokenizers 0.9.2 is too old .* restart the kernel"),
    ],
)
def test_what_is_missing_or_too_old_is_told_with_its_remedy(installed, name, version, told):
    installed[name] = version
    if version is None:
        del installed[name]
    with pytest.raises(NotReady, match=told) as raised:
        ready.start()
    assert raised.value._render_traceback_() == [str(raised.value)] and "\n" not in str(
        raised.value
    )


@pytest.mark.parametrize("name", ["transformers", "peft", "bitsandbytes", "accelerate"])
def test_an_old_library_stops_only_the_lessons_that_use_it(installed, name):
    installed[name] = "0.0.5"
    ready.start()
    with pytest.raises(NotReady, match=f"{name} 0.0.5 is too old .* restart the kernel"):
        ready.need(name)


def test_another_projects_file_beside_installed_packages_is_not_ours(tmp_path, monkeypatch):
    ours = ready.requirements("hub")
    monkeypatch.setattr(ready, "ROOT", tmp_path)
    for text in ('[project]\nname = "other"\ndependencies = []\n', "no toml ="):
        (tmp_path / "pyproject.toml").write_text(text)
        assert ready.requirements("hub") in (ours, {})


@pytest.mark.parametrize("name", ["transformers", "peft", "bitsandbytes", "accelerate"])
def test_a_library_that_only_some_lessons_use_may_be_missing(installed, name):
    del installed[name]
    ready.start()
    with pytest.raises(NotReady, match=f"this lesson needs {name}: run `%pip install {name}`"):
        ready.need(name)


def test_versions_are_compared_by_number(installed):
    lowest = ready.requirements()["tokenizers"]
    installed["tokenizers"] = lowest + ".0.dev0"
    ready.start()
    installed["tokenizers"] = "0.100"
    ready.start()


def test_what_is_installed_but_does_not_start_is_told(installed, monkeypatch):
    def broken(name):
        raise OSError("libcudart.so.11.0: cannot open shared object file\nand more")

    monkeypatch.setattr(ready.importlib, "import_module", broken)
    with pytest.raises(NotReady, match="bitsandbytes is installed, but does not start: libcudart"):
        ready.need("bitsandbytes")


@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
@pytest.mark.parametrize("works", [True, False])
def test_on_a_host_it_is_installed_and_nothing_else_is_touched(installed, monkeypatch, host, works):
    del installed["bitsandbytes"]
    monkeypatch.setenv(host, "1")
    monkeypatch.setattr(ready.importlib, "import_module", lambda name: None)
    ran = []

    def run(command, **options):
        ran.append(command)
        if works:
            installed["bitsandbytes"] = "9999.0"
        return subprocess.CompletedProcess(command, int(not works))

    monkeypatch.setattr(ready.subprocess, "run", run)
    if works:
        ready.need("bitsandbytes", "peft")
    else:
        with pytest.raises(NotReady, match="this lesson needs bitsandbytes"):
            ready.need("bitsandbytes", "peft")
    (command,) = ran
    assert "--no-deps" in command and not {"-U", "--upgrade", "--force-reinstall"} & set(command)
    assert command[-1] == f"bitsandbytes>={ready.requirements('hub')['bitsandbytes']}"


def test_the_lowest_versions_are_pyprojects_with_a_clone_and_without(monkeypatch, tmp_path):
    project = pyproject()["project"]
    lines = [
        *project["dependencies"],
        *(f'{line}; extra == "hub"' for line in project["optional-dependencies"]["hub"]),
        *(f"{line}; extra == 'test'" for line in project["optional-dependencies"]["test"]),
    ]
    beside = ready.requirements(), ready.requirements("hub")
    assert beside[0]["torch"] == "2.5" and set(beside[1]) >= {"transformers", "peft"}
    assert not set(beside[0]) & set(beside[1])
    monkeypatch.setattr(ready, "ROOT", tmp_path)
    monkeypatch.setattr(ready.metadata, "requires", lambda name: lines)
    assert (ready.requirements(), ready.requirements("hub")) == beside


def test_later_cells_repeat_the_line_until_it_is_mended(installed):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance(colors="nocolor")
    try:
        del installed["numpy"]
        start = "# Setup\nfrom minilora.course import ready\nready.start()"
        assert isinstance(shell.run_cell(start).error_in_exec, NotReady)
        refused = shell.run_cell("fine = 1")
        assert isinstance(refused.error_in_exec, MiniloraError)
        assert str(refused.error_in_exec).startswith("the course needs numpy")
        installed["numpy"] = "9999.0"
        assert shell.run_cell(start).success and shell.run_cell("fine = 1").success
    finally:
        ready._repeat("")
        InteractiveShell.clear_instance()


def test_on_a_machine_of_ones_own_nothing_is_installed(installed, monkeypatch):
    del installed["bitsandbytes"]
    monkeypatch.setattr(ready.subprocess, "run", lambda *args, **options: pytest.fail("installs"))
    with pytest.raises(NotReady, match="%pip install bitsandbytes"):
        ready.need("bitsandbytes")
