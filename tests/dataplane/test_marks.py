"""The mark of answers: their class's, on the wire; changed where the next request is of another class."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from h2_rig import CLEARTEXT, H2Viewer
from plane_rig import GENERIC, MEDIA, Rig, pattern
from sniffing import sniffing, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
Rigs = Callable[..., Rig]
AF41, EF = 34, 46


def marked(rigs: Rigs, **options: object) -> Rig:
    rig = rigs(**options)
    rig.marks = {MEDIA: AF41, GENERIC: EF}
    rig.publish()
    rig.store("/x", pattern(9000))
    rig.store("/generic/x", pattern(9000), origin=GENERIC)
    return rig


def test_answers_have_the_mark_of_their_class(rigs: Rigs) -> None:
    rig = marked(rigs)
    with sniffing(rig.address[1]) as sniffer:
        viewer, other = rig.viewer(), rig.viewer()
        for path, dscp in (("/x", AF41), ("/generic/x", EF), ("/generic/x", EF), ("/x", AF41)):
            assert viewer.get(path).body == pattern(9000)
            seen = sniffer.marks()
            assert seen, path
            assert set(seen) == {dscp}, path
        assert viewer.get("/x", host="unknown").status == 421, "no class: as the one before"
        assert other.get("/generic/x", method="HEAD").status == 200
        assert EF in sniffer.marks()
        # Another policy, without any.
        rig.marks = {}
        rig.publish()
        assert viewer.get("/x").status == 200
        assert set(sniffer.marks()) == {0}


def test_streams_of_one_connection_share_its_socket_and_its_mark(rigs: Rigs) -> None:
    rig = marked(rigs, http2=CLEARTEXT)
    with sniffing(rig.address[1]) as sniffer:
        viewer = H2Viewer(rig)
        assert viewer.fetch("/x").body == pattern(9000)
        sniffer.marks()
        for path, dscp in (("/generic/x", EF), ("/x", AF41)):
            assert viewer.fetch(path).body == pattern(9000)
            assert dscp in sniffer.marks()
