"""CPU features and the module they select, cores, governor, interrupts and the hypervisor."""

import re
from pathlib import Path

from jaxrank.bundle import read_manifest
from jaxrank.cpu import LEVELS, instruction_sets
from jaxrank.errors import BundleError
from jaxrank.targets import HOST_CPU, choose_target, on_cpu
from serving.doctor.finding import Finding, Severity, good
from serving.doctor.system import System, numbers

_CPU = "sys/devices/system/cpu"


def features(system: System, bundle: Path | None = None) -> list[Finding]:
    """The CPU's level, and which of a bundle's modules it runs."""
    info = system.read("proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    name = model.group(1) if model else "unknown model"
    available = instruction_sets(system.root)
    level = next((name for name, needs in reversed(LEVELS.items()) if needs <= available), None)
    x86 = bool(re.search(r"^flags\s*:", info, re.M))
    if x86 and level is None:
        lowest = next(iter(LEVELS))
        found = [
            Finding(
                check="CPU",
                severity=Severity.WARNING,
                found=f"{name}: below {lowest}, lacks {', '.join(sorted(LEVELS[lowest] - available))}",
                source="proc/cpuinfo",
                change="a virtual CPU model that passes the host's instruction sets on (host-passthrough)",
                why="jaxrank compiles for x86-64-v2 and higher; only a module compiled here runs here",
            )
        ]
    else:
        what = level or ", ".join(sorted(available)) or "the kernel lists no instruction sets"
        found = [good("CPU", f"{name}: {what}", "proc/cpuinfo")]
    return found if bundle is None else [*found, _module(bundle, available, level)]


def _module(bundle: Path, available: frozenset[str], level: str | None) -> Finding:
    manifest = read_manifest(bundle)
    source = f"{bundle}/manifest.json, proc/cpuinfo"
    if not manifest.targets:
        return good("module", "the host program makes every output: no module, or not compiled yet", source)
    if not any(on_cpu(target.name) for target in manifest.targets):
        return good("module", "the bundle has no CPU target", source)
    try:
        target = choose_target(bundle, manifest, HOST_CPU, available)
    except BundleError as error:
        return Finding(
            check="module",
            severity=Severity.ERROR,
            found=str(error),
            source=source,
            change=f"jaxrank compile {bundle} --target {f'{HOST_CPU}:{level}' if level else HOST_CPU}",
            why="a module is never run on a CPU that lacks an instruction it uses",
        )
    compiled_for = frozenset(target.instruction_sets)
    unused = frozenset() if level is None else LEVELS[level] - compiled_for
    if unused and compiled_for:
        return Finding(
            check="module",
            severity=Severity.ADVICE,
            found=f"{target.name} with {target.engine}: does not use {', '.join(sorted(unused))}",
            source=source,
            change=f"jaxrank compile {bundle} --target {HOST_CPU}:{level}, or {HOST_CPU} on this machine",
            why=f"this CPU is an {level}: wider vectors make the dense half faster",
        )
    return good("module", f"{target.name} with {target.engine}", source)


def cores(system: System) -> list[Finding]:
    """Cores of the machine against cores that a server may use, and whether two share one core's units."""
    online = numbers(system.read(f"{_CPU}/online") or "")
    present = numbers(system.read(f"{_CPU}/present") or "")
    status = re.search(r"^Cpus_allowed_list:\s*(\S+)", system.read("proc/self/status") or "", re.M)
    # The mask of allowed cores may name more than there are.
    allowed = sorted(set(numbers(status.group(1))) & set(online)) if status else online
    source = f"{_CPU}/online, proc/self/status"
    found = []
    if len(allowed) < len(online):
        found.append(
            Finding(
                check="cores",
                severity=Severity.ADVICE,
                found=f"{len(allowed)} of {len(online)} cores may be used ({_ranges(allowed)})",
                source=source,
                change="none where that is meant; else taskset, or the container's cpuset",
                why="the server starts one stream for each core it may use",
            )
        )
    else:
        offline = f", {len(present) - len(online)} more are offline" if len(present) > len(online) else ""
        found.append(good("cores", f"all {len(online)} cores may be used{offline}", source))
    siblings = {system.read(f"{_CPU}/cpu{n}/topology/thread_siblings_list") for n in allowed} - {None}
    if system.read(f"{_CPU}/smt/active") == "1" and siblings and len(siblings) < len(allowed):
        found.append(
            Finding(
                check="SMT",
                severity=Severity.ADVICE,
                found=f"{len(allowed)} hardware threads on {len(siblings)} cores",
                source=f"{_CPU}/smt/active, {_CPU}/cpu*/topology",
                change=f"measure jaxrank serve --streams {len(siblings)} against the default",
                why="two streams on one core share its vector units: each call takes longer",
            )
        )
    return found


def governor(system: System) -> list[Finding]:
    """How the CPU's frequency is chosen."""
    policies: dict[str, list[int]] = {}
    for name in system.names(_CPU):
        if re.fullmatch(r"cpu\d+", name) and (
            value := system.read(f"{_CPU}/{name}/cpufreq/scaling_governor")
        ):
            policies.setdefault(value, []).append(int(name[3:]))
    source = f"{_CPU}/cpu*/cpufreq/scaling_governor"
    if not policies:
        return [good("governor", "no frequency scaling here: the firmware or the hypervisor decides", source)]
    first = min(min(n) for n in policies.values())
    driver = system.read(f"{_CPU}/cpu{first}/cpufreq/scaling_driver") or "unknown driver"
    listed = "; ".join(f"{value} on {_ranges(n)}" for value, n in policies.items()) + f" ({driver})"
    found = []
    if set(policies) == {"performance"}:
        found.append(good("governor", listed, source))
    else:
        # With these drivers "powersave" is dynamic; with the others it is the lowest frequency, always.
        slow = "powersave" in policies and driver not in ("intel_pstate", "amd-pstate-epp")
        found.append(
            Finding(
                check="governor",
                severity=Severity.WARNING if slow else Severity.ADVICE,
                found=listed,
                source=source,
                change="cpupower frequency-set -g performance",
                why="this one stays at the lowest frequency"
                if slow
                else "between requests the clock falls, and each request waits until it has risen again",
            )
        )
    if system.read(f"{_CPU}/intel_pstate/no_turbo") == "1" or system.read(f"{_CPU}/cpufreq/boost") == "0":
        found.append(
            Finding(
                check="turbo",
                severity=Severity.ADVICE,
                found="off",
                source=f"{_CPU}/intel_pstate/no_turbo, {_CPU}/cpufreq/boost",
                change=f"echo 0 > /{_CPU}/intel_pstate/no_turbo, or echo 1 > /{_CPU}/cpufreq/boost",
                why="one request at a time runs at the base clock; keep it off where even times matter more",
            )
        )
    return found


def interrupts(system: System) -> list[Finding]:
    """Which cores answer the network's interrupts."""
    found = []
    allowed = numbers(system.read(f"{_CPU}/online") or "")
    table = system.read("proc/interrupts") or ""
    balancer = any(Path(command[0]).name == "irqbalance" for _, command in system.processes() if command)
    for interface in system.names("sys/class/net"):
        device = f"sys/class/net/{interface}/device"
        if interface == "lo" or not system.names(device):
            continue
        irqs = _interrupts(system, interface, device, table)
        source = "proc/irq/*/effective_affinity_list"
        lists = [
            system.read(f"proc/irq/{n}/effective_affinity_list")
            or system.read(f"proc/irq/{n}/smp_affinity_list")
            for n in irqs
        ]
        where = sorted({core for text in lists if text for core in numbers(text)})
        queues = [q for q in system.names(f"sys/class/net/{interface}/queues") if q.startswith("rx-")]
        node = system.read(f"{device}/numa_node")
        what = f"{interface}: receive queues {len(queues)}, interrupts {len(irqs)}"
        what += f" on cores {_ranges(where) or 'unknown'}"
        what += f", NUMA node {node}" if node not in (None, "-1") else ""
        what += ", irqbalance runs" if balancer else ""
        steering = [system.read(f"sys/class/net/{interface}/queues/{q}/rps_cpus") for q in queues]
        unsteered = all(not (text or "0").replace(",", "").strip("0") for text in steering)
        if len(allowed) >= 8 and len(queues) > 1 and len(where) == 1:
            severity, change = (
                Severity.WARNING,
                "start irqbalance, or spread them: echo CORE > /proc/irq/N/smp_affinity_list",
            )
            why = "one core answers for every queue: it is full before the others, and requests wait for it"
        elif len(allowed) >= 8 and len(queues) == 1 and unsteered:
            severity, change = (
                Severity.ADVICE,
                f"ethtool -L {interface} combined N, or a mask in queues/rx-0/rps_cpus",
            )
            why = "one core receives everything that comes in"
        else:
            found.append(good("interrupts", what, source))
            continue
        found.append(
            Finding(check="interrupts", severity=severity, found=what, source=source, change=change, why=why)
        )
    return found or [good("interrupts", "no network device of its own", "sys/class/net")]


def _interrupts(system: System, interface: str, device: str, table: str) -> list[str]:
    """Numbers of a network device's interrupts: its own, or those that carry its name."""
    own = system.names(f"{device}/msi_irqs")
    name = system.link(device)
    named = re.compile(rf"^\s*(\d+):.*\b({re.escape(interface)}|{re.escape(name)})\b", re.M)
    return own or [found.group(1) for found in named.finditer(table)]


def hypervisor(system: System) -> list[Finding]:
    """Whether this is a virtual machine, and how much of its time the host gave to others."""
    flags = re.search(r"^flags\s*:(.*)$", system.read("proc/cpuinfo") or "", re.M)
    virtual = "hypervisor" in (flags.group(1).split() if flags else ())
    parts = [system.read(f"sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    kind = " ".join(filter(None, [*parts, system.read("sys/hypervisor/type")]))
    what = f"virtual machine{kind and ': '}{kind}" if virtual else f"no hypervisor{kind and ': '}{kind}"
    source = "proc/cpuinfo, sys/class/dmi/id, proc/stat"
    line = re.search(r"^cpu\s+(.*)$", system.read("proc/stat") or "", re.M)
    times = [int(x) for x in line.group(1).split()][:8] if line else []
    steal = times[7] / max(sum(times), 1) if len(times) == 8 else 0.0
    if steal > 0.01:
        return [
            Finding(
                check="hypervisor",
                severity=Severity.WARNING,
                found=f"{what}; since boot {steal:.1%} of its time went to others",
                source=source,
                change="an instance with dedicated cores, or a less crowded host",
                why="a core that the host takes away stops in the middle of a request",
            )
        ]
    return [good("hypervisor", what, source)]


def _ranges(values: list[int]) -> str:
    """[0, 1, 2, 8] as "0-2,8"."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][1] + 1:
            parts[-1][1] = value
        else:
            parts.append([value, value])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
