"""Machines, each a text file of `machines/` with the files that a reader sees, and what is found on them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jaxrank.bundle import read_manifest, write_manifest
from serving.doctor import EXIT_CODES, Severity, System, examine, worst

MACHINES = Path(__file__).parent / "machines"
JAXRANK = str(Path(sys.executable).parent / "jaxrank")

ADVICE, WARNING, ERROR = Severity.ADVICE, Severity.WARNING, Severity.ERROR

# machine, whatever is not well there (but for the allocator: no tree has libraries)
EXPECTED = {
    "amd_virtual_machine": {"locked memory": ADVICE},
    "intel_two_sockets": {
        "huge pages": WARNING,
        "huge page defrag": ADVICE,
        "NUMA": ADVICE,
        "NUMA balancing": ADVICE,
        "swap": ADVICE,
        "overcommit": WARNING,
        "SMT": ADVICE,
        "governor": WARNING,
        "turbo": ADVICE,
        "interrupts": WARNING,
        "open files": WARNING,
        "locked memory": ADVICE,
    },
    "amd_two_sockets": {"NUMA": ADVICE, "CPU quota": WARNING},
    "gpu_machine": {
        "cores": ADVICE,
        "interrupts": ADVICE,
        "hypervisor": WARNING,
        "GPU persistence": ADVICE,
        "MPS": ADVICE,
        "open files": WARNING,
    },
}

FOUND = {
    "amd_virtual_machine": {"CPU": "AMD EPYC: x86-64-v4", "interrupts": "interrupts 3 on cores 0-1"},
    "intel_two_sockets": {
        "CPU": "6244 CPU @ 3.60GHz: x86-64-v4",
        "NUMA": "node1: cores 8-15,24-31, 93.8 GiB, distances 21 10",
        "SMT": "32 hardware threads on 16 cores",
        "governor": "powersave on 0-31 (acpi-cpufreq)",
        "interrupts": "ens1f0: receive queues 8, interrupts 8 on cores 0, NUMA node 0",
        "hypervisor": "no hypervisor: Dell Inc. PowerEdge R640",
    },
    "amd_two_sockets": {
        "CPU": "7532 32-Core Processor: x86-64-v3",
        "CPU quota": "4.5 cores of 64, stopped 812 times",
        "memory": "16.0 GiB at most, 16.0 GiB free",
        "interrupts": "interrupts 16 on cores 0,2,4,6,8,10,12,14,16,18,20,22,24,26,28,30, NUMA node 1",
    },
    "gpu_machine": {
        "cores": "8 of 16 cores may be used (0-7)",
        "hypervisor": "virtual machine: Google Google Compute Engine; since boot 2.9% of its time",
        "GPU": "NVIDIA A100-SXM4-40GB, 40.0 GiB, compute 8.0; NVIDIA A100-SXM4-40GB",
        "driver": "570.86.15",
    },
}


def unpack(name: str, root: Path) -> Path:
    """Writes a machine's files below `root`."""
    for section in (MACHINES / f"{name}.txt").read_text().split("\n=== ")[1:]:
        path, _, text = section.partition("\n")
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def found(root: Path, bundle: Path | None = None) -> dict[str, str]:
    return {f.check: f.found for f in examine(System(root), bundle)}


def problems(root: Path, bundle: Path | None = None) -> dict[str, Severity]:
    found = {f.check: f.severity for f in examine(System(root), bundle) if f.severity > Severity.OK}
    assert found.pop("allocator") == WARNING
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_found(name: str, tmp_path: Path) -> None:
    findings = examine(System(unpack(name, tmp_path)))
    assert problems(tmp_path) == EXPECTED[name]
    texts = {f.check: f.found for f in findings}
    for check, text in FOUND[name].items():
        assert text in texts[check], check
    for finding in findings:
        assert finding.source
        assert bool(finding.change) == bool(finding.why) == (finding.severity > Severity.OK), finding.check


@pytest.mark.parametrize(
    ("name", "file", "text", "check", "severity"),
    [
        ("amd_two_sockets", "proc/self/limits", "Max open files  512  512  files", "open files", ERROR),
        ("amd_two_sockets", "sys/kernel/mm/transparent_hugepage/enabled", None, "huge pages", ADVICE),
        ("amd_two_sockets", "sys/devices/system/node/node1/meminfo", "", "NUMA memory", WARNING),
        ("amd_two_sockets", "proc/cpuinfo", "flags\t: fpu sse2 pni\n", "CPU", WARNING),
        ("amd_two_sockets", "proc/irq/200/effective_affinity_list", "?", "interrupts", WARNING),
        ("gpu_machine", "proc/driver/nvidia/version", None, "GPU", WARNING),
        ("gpu_machine", "commands/nvidia-smi", "A100, 570.1, 40960, 8.0, Enabled, Prohibited", "MPS", ERROR),
    ],
)  # fmt: skip
def test_one_change(
    name: str, file: str, text: str | None, check: str, severity: Severity, tmp_path: Path
) -> None:
    """One file of a machine has another text, or is missing."""
    unpack(name, tmp_path)
    before = problems(tmp_path)
    (tmp_path / file).unlink() if text is None else (tmp_path / file).write_text(text)
    assert before.get(check) != severity
    assert problems(tmp_path)[check] == severity


def test_mps_daemon_and_a_server_without_jemalloc(tmp_path: Path) -> None:
    unpack("gpu_machine", tmp_path)
    commands = {41: ["/usr/bin/nvidia-cuda-mps-control", "-d"], 42: ["jaxrank", "serve", "m"]}
    for process, command in commands.items():
        (tmp_path / f"proc/{process}").mkdir()
        (tmp_path / f"proc/{process}/cmdline").write_text("\0".join(command) + "\0")
    (tmp_path / "proc/42/maps").write_text("7f00-7f10 r-xp 0 08:01 1 /usr/lib/libc.so.6\n")
    texts, severities = found(tmp_path), problems(tmp_path)
    assert "MPS" not in severities and "daemon runs" in texts["MPS"]
    assert severities["server's allocator"] == WARNING
    (tmp_path / "proc/42/maps").write_text("7f00-7f10 r-xp 0 08:01 1 /usr/lib/libjemalloc.so.2\n")
    assert "server's allocator" not in problems(tmp_path)


def test_a_bundle(ranker_bundle: Path, tmp_path: Path) -> None:
    """It has modules for the compiling CPU, cuda:sm_80 and Vulkan."""
    here, gpu, amd = tmp_path / "here", tmp_path / "gpu", tmp_path / "amd"
    shutil.copytree(ranker_bundle, tmp_path / "ranker")
    bundle = tmp_path / "ranker"
    unpack("gpu_machine", gpu)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    (gpu / "proc/cpuinfo").write_text(cpuinfo)
    assert problems(gpu, bundle).keys() - problems(gpu).keys() == set()
    assert found(gpu, bundle)["GPU target"] == "cuda:sm_80"
    assert found(gpu, bundle)["module"] == "cpu with iree"
    smi = gpu / "commands/nvidia-smi"
    smi.write_text(smi.read_text().replace("8.0", "7.5"))
    assert problems(gpu, bundle)["GPU target"] == ERROR

    unpack("amd_virtual_machine", here)
    assert problems(here, bundle)["GPU target"] == ADVICE
    (here / "proc/cpuinfo").write_text("flags\t: fpu sse2 pni\n")
    assert problems(here, bundle)["module"] == ERROR
    assert "was compiled for a CPU with" in found(here, bundle)["module"]

    unpack("amd_two_sockets", amd)
    (amd / "proc/cpuinfo").write_text(cpuinfo)
    (amd / "sys/fs/cgroup/kubepods/memory.max").write_text("20000")
    assert problems(amd, bundle)["memory"] == ERROR

    manifest = read_manifest(bundle)
    only_cuda = tuple(t for t in manifest.targets if t.name.startswith("cuda"))
    write_manifest(bundle, msgspec.structs.replace(manifest, targets=only_cuda))
    assert problems(here, bundle)["GPU target"] == ERROR


def test_this_machine_recorded_is_this_machine(tmp_path: Path) -> None:
    """But for what is not recorded: libraries and processes; and what changes from one look to the next."""
    live = System()
    now = {f.check: (f.severity, f.found) for f in examine(live)}
    live.record(tmp_path)
    then = {f.check: (f.severity, f.found) for f in examine(System(tmp_path))}
    for varying in ("allocator", "server's allocator", "MPS", "memory", "hypervisor"):
        now.pop(varying, None), then.pop(varying, None)
    assert {k: (s, text.replace(", irqbalance runs", "")) for k, (s, text) in now.items()} == then


def test_the_command(tmp_path: Path) -> None:
    root = unpack("intel_two_sockets", tmp_path / "machine")
    done = subprocess.run(
        [JAXRANK, "doctor", "--json", "--root", root], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == EXIT_CODES[WARNING] == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["severity"] == "warning" and report["exit_code"] == 3
    governor = next(f for f in report["findings"] if f["check"] == "governor")
    assert governor["severity"] == "warning" and governor["change"] == "cpupower frequency-set -g performance"
    (root / "proc/self/limits").write_text("Max open files  512  512  files")
    done = subprocess.run([JAXRANK, "doctor", "--root", root], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CODES[ERROR] == 4
    assert "✗ open files: at most 512 (proc/self/limits)\n    change: ulimit -n 65536" in done.stdout


def test_only_advice_is_no_failure() -> None:
    assert [EXIT_CODES[s] for s in Severity] == [0, 0, 3, 4]
    assert worst([]) == Severity.OK
