"""A server is found, checked, and given an environment and a backend directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_fixtures import THIS_PYTHON, install

from fmplex_backend.errors import SetupProblem
from fmplex_controller.__main__ import main as report
from fmplex_controller.server import installation as inst
from fmplex_controller.server.installation import Installation


class TestFind:
    def test_a_server_on_path_comes_first(self, system: Installation, tmp_path: Path) -> None:
        assert system.binary == tmp_path / "tritonserver" / "bin" / "tritonserver"
        assert system.stub == system.python_backend / inst.STUB
        assert not system.numpy_1_only

    def test_then_the_container_s_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", install(tmp_path / "opt"))
        assert inst.find_tritonserver().binary == tmp_path / "opt" / "bin" / "tritonserver"

    def test_then_the_wheel_s(self, wheel: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", tmp_path / "nothing")
        monkeypatch.syspath_prepend(tmp_path)
        assert inst.find_tritonserver() == wheel

    def test_none_is_a_setup_problem(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", tmp_path)
        monkeypatch.setattr(inst, "find_spec", lambda name: None)
        with pytest.raises(SetupProblem, match=r"no tritonserver.*fmplex\[server\]"):
            inst.find_tritonserver()


class TestCheck:
    def test_a_fitting_one_passes(self, wheel: Installation, system: Installation) -> None:
        inst.check(wheel)
        inst.check(system)

    def test_numpy_2_is_refused_by_the_wheel_only(
        self, wheel: Installation, system: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst.metadata, "version", lambda name: "2.1.0")
        inst.check(system)
        with pytest.raises(SetupProblem, match=r"numpy 2\.1\.0 is installed.*pip install \"numpy<2\""):
            inst.check(wheel)

    def test_a_stub_of_another_python(self, tmp_path: Path) -> None:
        root = install(tmp_path / "other", stub_python="3.7")
        other = Installation(root / "bin", root / "backends", root / "backends" / "python" / inst.STUB)
        with pytest.raises(SetupProblem, match=r"runs Python 3\.7.*Install FMplex with python3\.7"):
            inst.check(other)

    def test_no_stub_for_this_python(self, wheel: Installation) -> None:
        wheel.stub.unlink()
        with pytest.raises(SetupProblem, match=f"has no Python {THIS_PYTHON} stub"):
            inst.check(wheel)

    def test_no_shared_libpython(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(inst.sysconfig, "get_config_var", lambda name: str(tmp_path))
        monkeypatch.setattr(inst.sys, "base_prefix", str(tmp_path))
        monkeypatch.setattr(inst.ctypes.util, "find_library", lambda name: None)
        with pytest.raises(SetupProblem, match=r"there is no libpython.*apt install libpython"):
            inst.libpython_folder()


class TestReport:
    """`python -m fmplex_controller`."""

    @pytest.mark.usefixtures("system")
    def test_what_would_run(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert report() == 0
        assert capsys.readouterr().out == f"tritonserver: {tmp_path}/tritonserver/bin/tritonserver\n"

    @pytest.mark.usefixtures("system")
    def test_libraries_the_loader_does_not_find(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = "\tlibarchive.so.13 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"
        done = subprocess.CompletedProcess([], 0, said, "")
        monkeypatch.setattr(inst.subprocess, "run", lambda *_, **__: done)
        assert report() == 1
        errors = capsys.readouterr().err
        assert errors.count("libarchive.so.13 => not found") == 1
        assert "libc.so.6" not in errors

    def test_what_is_missing(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inst, "_system_roots", lambda: iter(()))
        monkeypatch.setattr(inst, "_wheel_root", lambda: None)
        assert report() == 1
        assert "no tritonserver" in capsys.readouterr().err


class TestEnvironment:
    def test_this_python_comes_first(self, wheel: Installation) -> None:
        variables = inst.environment(wheel, {"PATH": "/usr/bin", "PYTHONPATH": "/mine"})
        assert variables["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
        assert variables["PYTHONPATH"].split(":")[:2] == ["/mine", str(inst.backend_package().parent)]
        assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
        in_venv = sys.prefix != sys.base_prefix
        assert variables.get("VIRTUAL_ENV") == (sys.prefix if in_venv else None)

    def test_libraries_of_the_wheel_before_the_user_s_before_python_s(
        self, wheel: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst, "libpython_folder", lambda: Path("/python/lib"))
        variables = inst.environment(wheel, {"LD_LIBRARY_PATH": "/cuda:/more"})
        folders = variables["LD_LIBRARY_PATH"].split(":")
        assert folders == [str(wheel.libraries[0]), "/cuda", "/more", "/python/lib"]

    def test_nothing_empty_is_put_on_the_library_path(
        self, system: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst, "libpython_folder", lambda: None)
        assert inst.environment(system, {})["LD_LIBRARY_PATH"] == ""  # a ":" would mean the working directory


class TestCompose:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "model.py").write_text("the backend")
        monkeypatch.setattr(inst, "backend_package", lambda: tmp_path / "package")

    def test_the_wheel_s_parts_are_copied_together(self, wheel: Installation, tmp_path: Path) -> None:
        backends = inst.compose_backends(wheel, tmp_path / "composed")
        assert (backends / "fmplex" / "model.py").read_text() == "the backend"
        python = {file.name for file in (backends / "python").iterdir() if not file.is_symlink()}
        assert python == {inst.PYTHON_BACKEND, inst.STUB, "triton_python_backend_utils.py"}

    def test_a_server_s_other_backends_stay_available(self, system: Installation, tmp_path: Path) -> None:
        backends = inst.compose_backends(system, tmp_path / "composed")
        assert sorted(entry.name for entry in backends.iterdir()) == ["fmplex", "onnxruntime", "python"]
        assert (backends / "python").resolve() == system.python_backend

    def test_a_mistyped_directory_gets_no_backend(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        for name, problem in (("empty", "holds no backend of Triton's"), ("nothing", "does not exist")):
            with pytest.raises(SetupProblem, match=f"{name} {problem}.*/opt/tritonserver/backends.*--create"):
                inst.install_backend(tmp_path / name)
            assert not list((tmp_path).glob(f"{name}/*"))
        assert inst.install_backend(tmp_path / "nothing", create=True).is_file()
        assert inst.install_backend(tmp_path / "nothing").is_file(), "it is renewed"

    def test_an_installed_fmplex_gives_way_to_the_running_one(self, system: Installation, tmp_path: Path) -> None:
        (system.backends / "onnxruntime" / "libtriton_onnxruntime.so").touch()
        installed = inst.install_backend(system.backends)
        installed.write_text("an older backend")
        backends = inst.compose_backends(system, tmp_path / "composed")
        assert (backends / "fmplex" / "model.py").read_text() == "the backend"
