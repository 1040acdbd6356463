import collections
import os
import pickle
import pickletools
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refseg.data.published.pickles import read_plain_pickle
from refseg.errors import RefsegError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=30,
)
REF = {
    "sent_ids": [0, 1],
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "ann_id": 1719310,
    "ref_id": 0,
    "image_id": 581857,
    "split": "train",
    "sentences": [{"tokens": ["the", "hat"], "raw": "THE hat", "sent_id": 0, "sent": "the hat"}],
    "category_id": 1,
}


class Call:
    """Pickles into an instruction to call `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "refs(unc).p"
        path.write_bytes(content)
        return path

    return write


@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
@settings(max_examples=60, deadline=None)
def test_plain_data_survives(tmp_path_factory, protocol, value):
    path = tmp_path_factory.getbasetemp() / "plain.p"
    path.write_bytes(pickle.dumps(value, protocol))
    if {op.name for op, _, _ in pickletools.genops(path.read_bytes())} & {"GLOBAL", "REDUCE"}:
        assert protocol < 3  # where bytes are built by a call
        with pytest.raises(RefsegError, match="refused"):
            read_plain_pickle(path)
    else:
        assert read_plain_pickle(path) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_dataset_is_read_in_every_protocol(file, protocol):
    assert read_plain_pickle(file(pickle.dumps([REF, REF], protocol))) == [REF, REF]


def test_a_pickle_of_python_2_is_read(file):
    # {'sent': 'cap', u'raw': u'caf\xe9', 'ref_id': 7L} in protocol 0, 'caf\xc3\xa9' and '\xff' in protocol 2
    old = b"(dp1\nS'sent'\np2\nS'cap'\np3\nsVraw\np4\nVcaf\\u00e9\np5\nsS'ref_id'\np6\nL7L\ns."
    assert read_plain_pickle(file(old)) == {"sent": "cap", "raw": "café", "ref_id": 7}
    assert read_plain_pickle(file(b"\x80\x02U\x05caf\xc3\xa9q\x01.")) == "café"
    assert read_plain_pickle(file(b"\x80\x02U\x01\xffq\x01.")) == "�"


CRAFTED = {
    "a command": lambda marker: Call(os.system, f"touch {marker}"),
    "an evaluation": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "nested in a dataset": lambda marker: [{**REF, "sentences": [{"sent": Call(os.system, f"touch {marker}")}]}],
    "as a key": lambda marker: {Call(os.system, f"touch {marker}"): 1},
    "through a container's class": lambda marker: collections.OrderedDict(a=Call(os.system, f"touch {marker}")),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_pickle_is_refused_and_nothing_runs(file, tmp_path, kind, protocol):
    marker = tmp_path / "marker"
    path = file(pickle.dumps(CRAFTED[kind](marker), protocol))
    with pytest.raises(RefsegError, match=r"is refused: it .* get a new copy") as refusal:
        read_plain_pickle(path)
    assert "\n" not in str(refusal.value)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_crafted_pickles_do_run_elsewhere(tmp_path, protocol):
    """Otherwise the test above would show nothing."""
    for number, make in enumerate(CRAFTED.values()):
        marker = tmp_path / f"marker{number}"
        pickle.loads(pickle.dumps(make(marker), protocol))
        assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
        b"\x80\x02c__builtin__\neval\nU\x011\x85R.",
        b"\x80\x02ccopy_reg\n_reconstructor\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x83\x01\x00.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
        b"\x80\x02]}b.",
        b"\x80\x02K\x01Q.",
        b"Pname\n.",
        b"\x80\x05\x97.",
        b"(lp0\n0" * 3 + b"cos\nsystem\n.",
    ],
)
def test_every_way_to_an_import_or_a_call_is_refused(file, content):
    with pytest.raises(RefsegError, match="is refused"):
        read_plain_pickle(file(content))


@pytest.mark.parametrize("value", [np.float64(1), np.zeros(2), object(), collections.Counter("a"), 1j, range(3), print])
def test_what_is_not_plain_is_refused(file, value):
    with pytest.raises(RefsegError, match="is refused"):
        read_plain_pickle(file(pickle.dumps(value)))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 45) + b"short.",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 45) + b"short.",
        b"\x80\x03B" + struct.pack("<I", (1 << 32) - 1) + b"short.",
        b"\x80\x02T" + struct.pack("<i", (1 << 31) - 1) + b"short.",
        b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"short.",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 45) + b"N.",
        b"\x80\x02]r" + struct.pack("<I", (1 << 31) - 1) + b".",
        b"(lp4000000000\n.",
        b"(lp" + b"9" * 100 + b"\n.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"}" + b")" + b"\x85" * 2_000_000 + b"K\x01s.",
    ],
)
def test_what_would_take_memory_or_time_is_refused(file, content):
    path = file(content)
    tracemalloc.start()
    started = time.process_time()
    try:
        with pytest.raises(RefsegError):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5


def test_a_file_beyond_all_measure_is_not_read(file, monkeypatch):
    monkeypatch.setattr("refseg.data.published.pickles.MAX_BYTES", 100)
    with pytest.raises(RefsegError, match="not read"):
        read_plain_pickle(file(pickle.dumps(["x" * 100])))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_damaged_pickle_is_reported(file, protocol):
    whole = pickle.dumps([REF], protocol)
    for end in range(0, len(whole), 5):
        with pytest.raises(RefsegError, match="get a new copy"):
            read_plain_pickle(file(whole[:end]))


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_bytes_at_all_break_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.p"
    path.write_bytes(content)
    try:
        read_plain_pickle(path)
    except RefsegError as fault:
        assert str(path) in str(fault)


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(RefsegError, match="cannot be read"):
        read_plain_pickle(tmp_path / "absent.p")
