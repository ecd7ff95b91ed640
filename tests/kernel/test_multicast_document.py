"""docs/multicast.md is true: its policies are right ones, and the branch with two VLANs does what it says (VLANs are
wires of their own here: not every kernel of a test machine has 802.1Q)."""

from __future__ import annotations

import re
from pathlib import Path

import netns
import pytest
from netd_box import NetdBox, wait_for
from streams import PORT

from accelerator.kernel.state import encode
from accelerator.policy import check_texts, compile_policy
from accelerator.services.netd.wishes import desired

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "multicast.md").read_text()
POLICIES = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(POLICIES)))
def test_each_policy_passes_the_check(number: int) -> None:
    policy, problems = check_texts([("multicast.md", POLICIES[number].encode())])
    assert policy is not None
    assert [str(each) for each in problems if not each.is_warning] == []


@pytest.mark.netns
@pytest.mark.skipif(bool(netns.why_not()), reason=netns.why_not() or "")
def test_the_branch_with_two_vlans(tmp_path: Path) -> None:
    policy, _ = check_texts([("multicast.md", POLICIES[0].encode())])
    assert policy is not None
    state = encode(desired(compile_policy(policy)))
    with netns.Topology() as topology:
        centre, box, desks, screens = (topology.namespace(name) for name in ("centre", "box", "desks", "screens"))
        topology.wire(centre, "eth0", box, "eth0")
        for address in ("10.1.0.2/24", "10.1.0.7/24"):
            centre.ip("addr", "add", address, "dev", "eth0")
        box.ip("addr", "add", "10.1.0.1/24", "dev", "eth0")
        for host, name, net in ((desks, "vlan20", "10.12.0"), (screens, "vlan30", "10.12.16")):
            topology.wire(host, "eth0", box, name)
            host.ip("addr", "add", f"{net}.2/24", "dev", "eth0")
            box.ip("addr", "add", f"{net}.1/24", "dev", name)
        with NetdBox(box, tmp_path) as netd:
            netd.ask("desire", service="policy", generation=1, state=state)
            netd.ready()
            desk = netns.join(desks, "eth0", "239.1.2.3", PORT)
            # The screens' own report finds a group that the proxy doesn't allow: policy sends it all the same.
            screen = netns.join(screens, "eth0", "239.9.0.1", PORT)
            wait_for(lambda: len([each for each in netd.proxy()["routes"] if each["is_installed"]]) == 2, "the routes")
            with netns.sender(centre, "eth0") as out, netns.sender(centre, "eth0") as menu:
                out.sendto(b"news", ("239.1.2.3", PORT))
                menu.bind(("10.1.0.7", 0))
                menu.sendto(b"soup", ("239.9.0.1", PORT))
            assert desk.recv(100) == b"news"
            assert screen.recv(100) == b"soup"
            desk.close()
            screen.close()
