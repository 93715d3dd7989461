"""What a backbone runs on, in words: what was measured on one machine says little about another. No torch."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

CPUS = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")


def hardware(threads: int = 0, *, cpus: Path = CPUS, gpus: Path = GPUS) -> str:
    """The GPUs of this machine, or its processor and the threads of a pass (0: the cores this process may use)."""
    found = [name for file in sorted(gpus.glob("*/information")) if (name := _value(file, "Model"))]
    if found:
        return " + ".join(found)
    name = _value(cpus, "model name") or platform.processor() or platform.machine()
    count = threads or len(os.sched_getaffinity(0))
    return f"{name}, {count} thread{'' if count == 1 else 's'}"


def _value(file: Path, key: str) -> str:
    """Of the first line `key: value`; "" where there is none."""
    with suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, found, value = line.partition(":")
            if found and name.strip() == key:
                return " ".join(value.split())
    return ""


def processor_vendor(file: Path = CPUS) -> str:
    """As the processor says it, e.g. AuthenticAMD; "" where that cannot be read."""
    return _value(file, "vendor_id")


def memory_of_machine(file: Path = Path("/proc/meminfo")) -> int:
    """Bytes of main memory; 0 where that cannot be read."""
    return _kib(_value(file, "MemTotal"))


def memory_of_process(file: Path = Path("/proc/self/statm")) -> int:
    """Bytes of main memory that this process has resident, libraries included; 0 where that cannot be read."""
    with suppress(OSError, ValueError, IndexError):
        return int(file.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def _kib(text: str) -> int:
    number = text.removesuffix("kB").strip()
    return int(number) * 1024 if number.isdecimal() else 0
