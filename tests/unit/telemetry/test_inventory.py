"""What a host is made of, from a tree of files laid out as the kernel lays it out."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.telemetry import smi
from pinchpoint.telemetry.accelerator import Accelerator, bus_id
from pinchpoint.telemetry.inventory import Inventory, from_readings, merged, take_inventory

SMI_DATA = Path(__file__).parents[2] / "data" / "smi"


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def pci(address: str, vendor: str, device_class: str, node: str = "0", device: str = "0x2330") -> dict[str, str]:
    place = f"bus/pci/devices/{address}"
    return {
        f"{place}/vendor": vendor + "\n",
        f"{place}/class": device_class + "\n",
        f"{place}/device": device + "\n",
        f"{place}/numa_node": node + "\n",
    }


CPUINFO = "".join(
    f"processor\t: {number}\nmodel name\t: AMD EPYC 9654 96-Core Processor\nphysical id\t: {number // 2}\n\n"
    for number in range(4)
)
PROC = {
    "cpuinfo": CPUINFO,
    "meminfo": "MemTotal:       2048 kB\nMemFree: 1 kB\n",
    "sys/kernel/osrelease": "6.8.0-60-generic\n",
}
SYS = {
    "devices/system/node/node0/cpulist": "0-1\n",
    "devices/system/node/node0/meminfo": "Node 0 MemTotal:       1024 kB\n",
    "devices/system/node/node1/cpulist": "2-3\n",
    "devices/system/node/node1/meminfo": "Node 1 MemTotal:       1024 kB\n",
    "devices/system/node/possible": "0-1\n",
    **pci("0000:19:00.0", "0x10de", "0x030200", "0"),
    **pci("0000:19:00.1", "0x10de", "0x040300", "0"),  # its audio
    **pci("0000:ab:00.0", "0x10de", "0x030200", "1"),
    **pci("0000:c1:00.0", "0x19e5", "0x120000", "1", "0xd802"),
    **pci("0000:03:00.0", "0x8086", "0x020000"),  # a NIC
    **pci("0000:05:00.0", "0x1da3", "0x120000", "-1"),
}


def host(tmp_path: Path, known: tuple[Accelerator, ...] = ()) -> Inventory:
    return take_inventory(known, lay_out(tmp_path / "proc", PROC), lay_out(tmp_path / "sys", SYS))


def test_processors_memory_and_nodes_are_read(tmp_path: Path) -> None:
    found = host(tmp_path)
    assert found.cpu_model == "AMD EPYC 9654 96-Core Processor"
    assert (found.cpus, found.sockets, found.memory_bytes) == (4, 2, 2 << 20)
    assert found.kernel == "6.8.0-60-generic"
    assert [(node.node, node.cpus, node.memory_bytes) for node in found.numa] == [
        (0, "0-1", 1 << 20),
        (1, "2-3", 1 << 20),
    ]


def test_accelerators_are_seen_without_any_driver(tmp_path: Path) -> None:
    seen = [(d.kind, d.index, d.bus_id, d.numa_node, d.source) for d in host(tmp_path).accelerators]
    assert seen == [
        ("ascend", 0, "0000:c1:00.0", 1, "sysfs"),
        ("gaudi", 0, "0000:05:00.0", None, "sysfs"),
        ("nvidia", 0, "0000:19:00.0", 0, "sysfs"),
        ("nvidia", 1, "0000:ab:00.0", 1, "sysfs"),
    ]


def test_what_the_driver_says_is_kept_and_gets_its_numa_node(tmp_path: Path) -> None:
    told = Accelerator("nvidia", 0, name="NVIDIA H100", bus_id="0000:ab:00.0", memory_bytes=85 << 30, source="nvml")
    nvidia = [device for device in host(tmp_path, (told,)).accelerators if device.kind == "nvidia"]
    assert [(d.index, d.name, d.numa_node, d.source) for d in nvidia] == [
        (0, "NVIDIA H100", 1, "nvml"),
        (1, "10de:2330", 0, "sysfs"),
    ]


def test_a_host_that_shows_nothing_is_an_inventory_of_nothing(tmp_path: Path) -> None:
    found = take_inventory((), tmp_path / "proc", tmp_path / "sys")
    assert (found.cpu_model, found.memory_bytes, found.numa, found.accelerators) == (None, None, (), ())


def test_this_host_can_be_described_and_written_down() -> None:
    found = take_inventory()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Inventory) == found
    assert found.cpus


@pytest.mark.parametrize(
    ("name", "parser", "expected"),
    [
        ("nvidia-smi-xml_tesla-t4.xml", smi.NVIDIA_XML, [("nvidia", 0, "Tesla T4", "0000:00:1e.0", 15360 << 20)]),
        (
            "rocm-smi_mi100.json",
            smi.ROCM_SMI,
            [
                ("amd", 0, "Arcturus GL-XL [Instinct MI100]", "0000:83:00.0", 34342961152),
                ("amd", 1, "Arcturus GL-XL [Instinct MI100]", "0000:a3:00.0", 34342961152),
            ],
        ),
    ],
)
def test_a_tools_readings_say_which_devices_there_are(name: str, parser: smi.Parser, expected: list[tuple]) -> None:
    found = from_readings(parser((SMI_DATA / name).read_bytes()), parser.name)
    assert [(d.kind, d.index, d.name, d.bus_id, d.memory_bytes) for d in found] == expected
    assert {device.source for device in found} == {parser.name}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00000000:19:00.0", "0000:19:00.0"), ("0000:C1:00.0", "0000:c1:00.0"), ("01:00.0", "0000:01:00.0"),
        ("00000001:0A:1F.7", "0001:0a:1f.7"), ("NA", None), ("", None), ("0000:19:00", None), ("zz:00.0", None),
    ],
)  # fmt: skip
def test_an_address_has_one_spelling(text: str, expected: str | None) -> None:
    assert bus_id(text) == expected


DEVICES = st.lists(
    st.builds(
        Accelerator,
        st.sampled_from(["nvidia", "amd"]),
        st.integers(0, 3),
        bus_id=st.sampled_from(["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]),
    ),
    max_size=4,
    unique_by=(lambda device: device.bus_id, lambda device: (device.kind, device.index)),
)


@given(DEVICES, DEVICES)
def test_each_address_is_listed_once_under_a_number_of_its_own(
    known: list[Accelerator], seen: list[Accelerator]
) -> None:
    out = merged(known, seen)
    addresses = [device.bus_id for device in out]
    assert sorted(addresses) == sorted({device.bus_id for device in known} | {device.bus_id for device in seen})
    assert len({(device.kind, device.index) for device in out}) == len(out)
    assert set(known) <= {msgspec.structs.replace(device, numa_node=None) for device in out}
