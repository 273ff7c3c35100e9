"""Which items of a user are known to be seen: by the order of published sessions, and without an order."""

from prefrec.data import seen_items
from prefrec.intake import PrepareConfig, prepare


def test_published_sessions_have_an_order_and_windows_have_none(tmp_path):
    lists = [" ".join(map(str, range(n, n + 8))) for n in range(3)]
    sessions = "".join(f"{n}\t{part}\t{lists[n]}\n" for n, part in enumerate(("train", "val", "test")))
    (tmp_path / "sequences.tsv").write_text("session\tsplit\titems\n" + sessions)
    (tmp_path / "id2name.txt").write_text("".join(f"{i}::Band {i}\n" for i in range(20)))
    options = {"history_length": 3, "candidates": {"size": 3}}
    data = prepare(PrepareConfig(source="lastfm-published", path=tmp_path, **options))
    (last,) = seen_items(data, data.test[-1:])
    assert (last, data.test[-1].history) == ({str(i) for i in range(2, 9)}, ("6", "7", "8"))
    row = '{{"history": ["A{0}", "B{0}", "C{1}"], "target": "{2}{0}", "group": {0}}}'
    lines = [row.format(g, g + n, t) for g in range(20) for n, t in enumerate("DE")]
    (tmp_path / "windows_train.jsonl").write_text("\n".join(lines))
    (tmp_path / "windows_valid_recovered.jsonl").write_text("")
    data = prepare(PrepareConfig(source="goodreads-windows", path=tmp_path, **options))
    assert seen_items(data, data.test) == [set(e.history) for e in data.test]
