"""GPUs, their driver, and what shares them."""

import csv
import re
from pathlib import Path

from jaxrank.bundle import read_manifest
from jaxrank.targets import on_cpu
from serving.doctor.finding import Finding, Severity, good
from serving.doctor.system import System, mib

_FIELDS = ("name", "driver_version", "memory.total", "compute_cap", "persistence_mode", "compute_mode")
_NVIDIA = "0x10de"


def gpus(system: System, bundle: Path | None = None) -> list[Finding]:
    """NVIDIA GPUs and driver, persistence, the Multi-Process Service, and whether a bundle's targets fit."""
    pci = [
        name
        for name in system.names("sys/bus/pci/devices")
        if system.read(f"sys/bus/pci/devices/{name}/vendor") == _NVIDIA
        and (system.read(f"sys/bus/pci/devices/{name}/class") or "").startswith("0x03")
    ]
    version = re.search(
        r"(?:Kernel Module|NVRM version).*?\s(\d+\.\d+(?:\.\d+)?)\s",
        system.read("proc/driver/nvidia/version") or "",
    )
    rows = _nvidia_smi(system)
    names = [row["name"] for row in rows] or _names(system)
    found: list[Finding] = []
    if not pci and not names and not version:
        found.append(good("GPU", "none", "sys/bus/pci/devices, proc/driver/nvidia"))
    elif not version:
        found.append(
            Finding(
                check="GPU",
                severity=Severity.WARNING,
                found=f"{len(pci)} NVIDIA GPUs ({', '.join(pci)}) and no driver",
                source="sys/bus/pci/devices, proc/driver/nvidia/version",
                change="install NVIDIA's driver (Debian: nvidia-driver), or pass it into the container",
                why="without the driver no CUDA target runs; CPU targets do",
            )
        )
    else:
        listed = "; ".join(
            f"{row['name']}, {mib(_number(row['memory.total']) * 2**20)}, compute {row['compute_cap']}"
            for row in rows
        )
        found.append(
            good(
                "GPU",
                listed or ", ".join(names) or f"{len(pci)} GPUs",
                "nvidia-smi" if rows else "proc/driver/nvidia",
            )
        )
        found.append(good("driver", version.group(1), "proc/driver/nvidia/version"))
        found += _persistence(rows)
        found += _sharing(system, rows)
    return found if bundle is None else [*found, *_targets(bundle, bool(version), rows)]


def _nvidia_smi(system: System) -> list[dict[str, str]]:
    printed = system.command(
        "nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"
    )
    rows = [[part.strip() for part in row] for row in csv.reader((printed or "").splitlines())]
    return [dict(zip(_FIELDS, row, strict=True)) for row in rows if len(row) == len(_FIELDS)]


def _names(system: System) -> list[str]:
    base = "proc/driver/nvidia/gpus"
    texts = [system.read(f"{base}/{name}/information") or "" for name in system.names(base)]
    return [found.group(1) for text in texts if (found := re.search(r"^Model:\s*(.+)$", text, re.M))]


def _number(text: str) -> float:
    return float(text) if re.fullmatch(r"[\d.]+", text) else 0.0


def _persistence(rows: list[dict[str, str]]) -> list[Finding]:
    if not any(row["persistence_mode"] == "Disabled" for row in rows):
        return [good("GPU persistence", "on", "nvidia-smi")] if rows else []
    return [
        Finding(
            check="GPU persistence",
            severity=Severity.ADVICE,
            found="off",
            source="nvidia-smi",
            change="systemctl enable --now nvidia-persistenced",
            why="without it the driver starts with the first process: seconds until a server answers",
        )
    ]


def _sharing(system: System, rows: list[dict[str, str]]) -> list[Finding]:
    daemons = [c for _, c in system.processes() if Path(c[0]).name == "nvidia-cuda-mps-control"]
    modes = sorted({row["compute_mode"] for row in rows})
    what = f"compute mode {', '.join(modes)}" if modes else "compute mode unknown"
    if daemons:
        return [good("MPS", f"its control daemon runs; {what}", "proc/*/cmdline, nvidia-smi")]
    if "Prohibited" in modes:
        return [
            Finding(
                check="MPS",
                severity=Severity.ERROR,
                found=what,
                source="nvidia-smi",
                change="nvidia-smi -c DEFAULT",
                why="no process may use the GPU",
            )
        ]
    return [
        Finding(
            check="MPS",
            severity=Severity.ADVICE,
            found=f"not running; {what}",
            source="proc/*/cmdline, nvidia-smi",
            change="nvidia-cuda-mps-control -d where several processes use a GPU; nothing for one server",
            why="without it the GPU runs one process at a time, in slices of time",
        )
    ]


def _targets(bundle: Path, driver: bool, rows: list[dict[str, str]]) -> list[Finding]:
    names = [target.name for target in read_manifest(bundle).targets]
    cuda = sorted({name for name in names if name.startswith("cuda")})
    source = f"{bundle}/manifest.json, nvidia-smi"
    if not cuda:
        return []
    only = not any(on_cpu(name) for name in names)
    if not driver:
        return [
            Finding(
                check="GPU target",
                severity=Severity.ERROR if only else Severity.ADVICE,
                found=f"the bundle has {', '.join(cuda)}, and this machine no GPU with a driver",
                source=source,
                change="serve it on a machine with a GPU" + ("" if only else ", or with --target cpu here"),
                why="a CUDA target runs on NVIDIA GPUs only",
            )
        ]
    capabilities = [int(row["compute_cap"].replace(".", "")) for row in rows if _number(row["compute_cap"])]
    needs = {name: int(match.group(1)) for name in cuda if (match := re.search(r"sm_(\d+)", name))}
    if capabilities and needs and min(needs.values()) > min(capabilities):
        return [
            Finding(
                check="GPU target",
                severity=Severity.ERROR,
                found=f"the bundle has {', '.join(cuda)}, and a GPU here is sm_{min(capabilities)}",
                source=source,
                change=f"jaxrank compile {bundle} --target cuda:sm_{min(capabilities)}",
                why="code for a newer GPU does not run on an older one",
            )
        ]
    return [good("GPU target", ", ".join(cuda), source)]
