"""`prefrec lab published-json`: what prepared data become, and what a source reads of it."""

from command import prefrec, succeed
from prefrec.data import read_prepared
from prefrec_lab.datasets.published import read_published


def test_prepared_rows_are_written_and_read(tmp_path):
    shop = ("--interactions", tmp_path / "log.csv", "--items", tmp_path / "items.csv")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{i},Thing {i}\n" for i in range(20)))
    log = [f"u{u},i{(3 * u + 7 * n) % 20},{n}\n" for u in range(5) for n in range(8)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(log))
    succeed("prepare", tmp_path / "data", "--source", "files", *shop, "--candidates.size", "7")
    succeed("lab", "published-json", tmp_path / "data", tmp_path / "json")
    data = read_prepared(tmp_path / "data")
    for part in ("train", "validation", "test"):
        _, rows = read_published(tmp_path / "json" / f"{part}.json", data.catalogue)
        assert [r.candidates for r in rows] == [e.candidates for e in data.split(part)]
    succeed("prepare", tmp_path / "again", "--source", "published-json", "--path", tmp_path / "json")
    assert len(read_prepared(tmp_path / "again").test) == len(data.test) > 0
    succeed("lab", "published-json", tmp_path / "json", tmp_path / "sessions", "--sequences")
    how = ("--source", "lastfm-published", "--path", tmp_path / "sessions", "--candidates.size", "7")
    succeed("prepare", tmp_path / "third", *how, "--domain", "generic")
    assert len({e.user_id for e in read_prepared(tmp_path / "third").test}) == len(data.test)
    refused = prefrec("lab", "published-json", tmp_path / "data", tmp_path, "--names", "x")
    assert "--names: only with --sequences" in refused.err
