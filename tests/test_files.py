import pytest

from tempspec.files import replacing, write_atomically


@pytest.mark.parametrize("content", ["grün", "grün".encode()])
def test_text_and_bytes(tmp_path, content):
    write_atomically(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == "grün".encode()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_atomically(tmp_path / "file", "old")

    def fail():
        with replacing(tmp_path / "file") as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
