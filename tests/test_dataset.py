import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import bench.dataset
from bench.dataset import Dataset, load_dataset
from bench.errors import BenchError, MissingError, UsageError


def picture(seed: int, size: tuple[int, int] = (20, 24)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def write_pairs(folder: Path, num: int = 8, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + num):
        picture(index).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(f"caption {index}\n")
    return folder


def write_metadata(folder: Path, rows: Sequence[object], file: str = "metadata.jsonl") -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / file).write_text("\n".join(lines), encoding="utf-8")
    return folder


def listed(num: int = 8, prefix: str = "") -> list[object]:
    return [{"file_name": f"{prefix}{index:03d}.png", "text": f"caption {index}"} for index in range(num)]


def examples(dataset: Dataset) -> dict[str, str]:
    return {example.name: example.caption for example in dataset.train + dataset.dev + dataset.test}


def problems(folder: Path) -> list[str]:
    with pytest.raises(UsageError) as caught:
        load_dataset(str(folder))
    return str(caught.value).split("\n")[1:]


# Layouts


def test_pairs_of_picture_and_text(tmp_path: Path) -> None:
    dataset = load_dataset(str(write_pairs(tmp_path)))
    assert dataset.name == str(tmp_path)
    assert examples(dataset) == {f"{index:03d}.png": f"caption {index}" for index in range(8)}


def test_pairs_in_images(tmp_path: Path) -> None:
    write_pairs(tmp_path / "images")
    assert "images/000.png" in examples(load_dataset(str(tmp_path)))


@pytest.mark.parametrize(
    ("pictures", "metadata", "prefix"),
    [
        (".", ".", ""),
        ("images", ".", "images/"),
        ("images", ".", ""),
        ("images", "images", ""),
        ("a", ".", "a/"),
    ],
)
def test_metadata_beside_or_above_the_pictures(
    tmp_path: Path, pictures: str, metadata: str, prefix: str
) -> None:
    write_pairs(tmp_path / pictures)
    write_metadata(tmp_path / metadata, listed(prefix=prefix))
    shown = "" if pictures == "." else f"{pictures}/"
    assert set(examples(load_dataset(str(tmp_path)))) == {f"{shown}{index:03d}.png" for index in range(8)}


def test_metadata_may_say_caption(tmp_path: Path) -> None:
    rows = [{"file_name": f"{index:03d}.png", "caption": f"a {index}"} for index in range(8)]
    write_metadata(write_pairs(tmp_path), rows)
    assert examples(load_dataset(str(tmp_path)))["003.png"] == "a 3"


def test_metadata_csv(tmp_path: Path) -> None:
    rows: list[object] = ["file_name,text", *(f'{index:03d}.png,"a, {index}"' for index in range(8))]
    write_metadata(write_pairs(tmp_path), rows, "metadata.csv")
    assert examples(load_dataset(str(tmp_path)))["003.png"] == "a, 3"


def test_byte_order_mark_and_line_separators_in_captions(tmp_path: Path) -> None:
    rows = [json.dumps(row, ensure_ascii=False).replace("caption", "a\u2028b") for row in listed()]
    write_metadata(write_pairs(tmp_path), ["\ufeff" + rows[0], *rows[1:], "", " "])
    assert examples(load_dataset(str(tmp_path)))["000.png"] == "a b 0"


@pytest.mark.parametrize("dev", ["dev", "validation"])
def test_splits_of_its_own_are_kept(tmp_path: Path, dev: str) -> None:
    for first, split in ((0, "train"), (20, dev), (40, "test")):
        write_pairs(tmp_path / split, 3, first)
    write_metadata(tmp_path / "test", [{"file_name": f"{n:03d}.png", "text": f"t {n}"} for n in (40, 41, 42)])
    dataset = load_dataset(str(tmp_path))
    names = [[example.name for example in split] for split in (dataset.train, dataset.dev, dataset.test)]
    assert names == [
        [f"train/00{n}.png" for n in range(3)],
        [f"{dev}/02{n}.png" for n in range(3)],
        [f"test/04{n}.png" for n in range(3)],
    ]
    assert dataset.test[0].caption == "t 40"


def test_a_picture_in_two_splits_is_a_duplicate(tmp_path: Path) -> None:
    for first, split in ((0, "train"), (20, "dev"), (1, "test")):
        write_pairs(tmp_path / split, 2, first)
    assert problems(tmp_path) == ["test/001.png: the same pixels as train/001.png"]


def test_a_split_with_one_picture_is_refused(tmp_path: Path) -> None:
    for num, first, split in ((3, 0, "train"), (1, 20, "dev"), (2, 40, "test")):
        write_pairs(tmp_path / split, num, first)
    with pytest.raises(UsageError, match="dev has 1 image, needs 2"):
        load_dataset(str(tmp_path))


def test_builtin_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first, split in ((0, "train"), (20, "dev"), (40, "test")):
        write_pairs(tmp_path / "builtin/emoji/pixel16" / split, 3, first)
    monkeypatch.setattr(bench.dataset, "files", lambda package: tmp_path)
    dataset = load_dataset("emoji/pixel16")
    assert dataset.name == "emoji/pixel16"
    assert dataset.dev[0].name == "dev/020.png"
    with pytest.raises(MissingError, match="emoji/fluent-3d"):
        load_dataset("emoji/fluent-3d")


@pytest.mark.parametrize("style", ["streamline", "pixel16", "fluent-3d"])
def test_bundled_data_sets_pass_every_check(style: str) -> None:
    try:
        dataset = load_dataset(f"emoji/{style}")
    except MissingError:
        pytest.skip("not in this checkout")
    assert [len(split) for split in (dataset.train, dataset.dev, dataset.test)] == [60, 48, 96]


# Splitting


def test_the_split_follows_the_pixels_not_the_names(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a", 20)
    (tmp_path / "b").mkdir()
    for index in range(20):
        picture(index).save(tmp_path / "b" / f"{99 - index}.webp", lossless=True)
        (tmp_path / "b" / f"{99 - index}.txt").write_text(f"caption {index}")
    first, second = load_dataset(str(tmp_path / "a")), load_dataset(str(tmp_path / "b"))
    assert [len(split) for split in (first.train, first.dev, first.test)] == [14, 3, 3]
    assert [e.digest for e in first.test + first.dev] == [e.digest for e in second.test + second.dev]
    assert [e.digest for e in first.test + first.dev] == sorted(e.digest for e in first.test + first.dev)


def test_train_is_in_the_order_of_names(tmp_path: Path) -> None:
    names = [example.name for example in load_dataset(str(write_pairs(tmp_path, 30))).train]
    assert names == sorted(names)


@pytest.mark.parametrize(("num", "sizes"), [(6, [2, 2, 2]), (13, [9, 2, 2]), (17, [11, 3, 3])])
def test_sizes_of_the_splits(tmp_path: Path, num: int, sizes: list[int]) -> None:
    dataset = load_dataset(str(write_pairs(tmp_path, num)))
    assert [len(split) for split in (dataset.train, dataset.dev, dataset.test)] == sizes


def test_fewer_than_six_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 images; at least 6 are needed"):
        load_dataset(str(write_pairs(tmp_path, 5)))


def test_the_fingerprint_follows_captions_and_pixels(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    original = load_dataset(str(tmp_path)).fingerprint
    assert load_dataset(str(tmp_path)).fingerprint == original
    assert load_dataset(str(tmp_path), "sks").fingerprint != original
    (tmp_path / "003.txt").write_text("another")
    changed = load_dataset(str(tmp_path)).fingerprint
    picture(99).save(tmp_path / "003.png")
    assert len({original, changed, load_dataset(str(tmp_path)).fingerprint}) == 3


def test_trigger_is_added_once_and_only_as_a_word(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "000.txt").write_text("a SKS dog")
    (tmp_path / "001.txt").write_text("two tasksks")
    (tmp_path / "003.txt").write_text("two sksy")
    captions = examples(load_dataset(str(tmp_path), " sks "))
    assert captions["000.png"] == "a SKS dog"
    assert captions["001.png"] == "sks, two tasksks"
    assert captions["002.png"] == "sks, caption 2"
    assert captions["003.png"] == "sks, two sksy"


# Images


def load_one(folder: Path, name: str) -> Image.Image:
    """The image of `name` in a data set of it and seven others."""
    write_pairs(folder, 7, first=500)
    (folder / name).with_suffix(".txt").write_text("it")
    dataset = load_dataset(str(folder))
    return next(e for e in dataset.train + dataset.dev + dataset.test if e.name == name).image()


def test_image_and_digest(tmp_path: Path) -> None:
    example = load_dataset(str(write_pairs(tmp_path))).train[0]
    expected = picture(int(example.name[:3]))
    assert example.image() == expected
    assert example.digest == hashlib.sha256(b"20x24:" + expected.tobytes()).hexdigest()


def test_an_example_can_be_sent_to_another_process(tmp_path: Path) -> None:
    example = load_dataset(str(write_pairs(tmp_path))).train[0]
    assert pickle.loads(pickle.dumps(example)).image() == example.image()


@pytest.mark.parametrize("content", [b"", None])
def test_a_file_that_changes_later_is_noticed(tmp_path: Path, content: bytes | None) -> None:
    example = load_dataset(str(write_pairs(tmp_path))).train[0]
    if content is None:
        picture(99).save(tmp_path / example.name)
    else:
        (tmp_path / example.name).write_bytes(content)
    with pytest.raises(UsageError, match=example.name):
        example.image()


@pytest.mark.fault(22)
def test_cmyk_is_converted(tmp_path: Path) -> None:
    picture(0).convert("CMYK").save(tmp_path / "a.jpg")
    assert load_one(tmp_path, "a.jpg").mode == "RGB"


@pytest.mark.fault(22)
def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    loaded = load_one(tmp_path, "a.jpg")
    assert loaded.size == (20, 40)
    assert not loaded.info and not loaded.getexif()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 10, 20))
    image.convert(mode).save(tmp_path / "a.png")
    loaded = load_one(tmp_path, "a.png")
    assert loaded.getpixel((2, 2)) == (255, 255, 255)
    assert loaded.getpixel((15, 2)) == image.convert(mode).convert("RGB").getpixel((15, 2))


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
def test_transparent_colour_of_a_palette_becomes_white(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.paste(1, (10, 0, 20, 20))
    image.save(tmp_path / "a.png", transparency=transparency)
    loaded = load_one(tmp_path, "a.png")
    assert (loaded.getpixel((2, 2)), loaded.getpixel((15, 2))) == ((255, 255, 255), (200, 0, 0))


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20), 0x8000, np.uint16)).save(tmp_path / "a.png")
    assert load_one(tmp_path, "a.png").getpixel((0, 0)) == (128, 128, 128)


def test_phone_pictures_with_a_second_picture_inside_are_fine(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.mpo", save_all=True, append_images=[picture(1)])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert load_one(tmp_path, "a.jpg").size == (20, 24)


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "a.webp").rename(tmp_path / "a.png")
    assert load_one(tmp_path, "a.png") == picture(0)


# What is wrong with a picture


def add(folder: Path, name: str) -> Path:
    write_pairs(folder)
    (folder / name).with_suffix(".txt").write_text("it")
    return folder / name


@pytest.mark.fault(22)
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = add(tmp_path, f"x.{suffix}")
    picture(77, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"x.{suffix}: ")


@pytest.mark.fault(22)
def test_empty_file(tmp_path: Path) -> None:
    add(tmp_path, "x.png").touch()
    assert problems(tmp_path) == ["x.png: an empty file"]


def test_not_a_picture(tmp_path: Path) -> None:
    add(tmp_path, "x.png").write_text("hello")
    assert problems(tmp_path) == ["x.png: not a picture in PNG, JPEG, WebP or BMP format"]


@pytest.mark.parametrize("name", ["x.gif", "x.tiff"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    picture(77).save(add(tmp_path, name))
    assert problems(tmp_path) == [f"{name}: not a picture in PNG, JPEG, WebP or BMP format"]


def test_a_forbidden_format_under_another_name_is_refused(tmp_path: Path) -> None:
    picture(77).save(add(tmp_path, "x.png"), "GIF")
    assert problems(tmp_path) == ["x.png: not a picture in PNG, JPEG, WebP or BMP format"]


@pytest.mark.fault(22)
@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animated(tmp_path: Path, suffix: str) -> None:
    path = add(tmp_path, f"x.{suffix}")
    picture(77).save(path, save_all=True, append_images=[picture(78)])
    assert problems(tmp_path) == [f"x.{suffix}: animated"]


def test_too_small(tmp_path: Path) -> None:
    picture(77, (15, 40)).save(add(tmp_path, "x.png"))
    assert problems(tmp_path) == ["x.png: 15x40 pixels; each side needs at least 16"]


@pytest.mark.parametrize("side", [9_600, 20_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(add(tmp_path, "x.png"))
    assert problems(tmp_path) == ["x.png: has too many pixels"]


def test_text_that_expands_in_a_png(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 70_000_000, zip=True)
    path = add(tmp_path, "x.png")
    picture(77).save(path, pnginfo=info)
    (problem,) = problems(tmp_path)
    assert problem.startswith("x.png: ")


def test_huge_file(tmp_path: Path) -> None:
    path = add(tmp_path, "x.png")
    with path.open("wb") as file:
        file.truncate(100_000_001)
    assert problems(tmp_path) == ["x.png: larger than 100 MB"]


def test_same_pixels_in_another_format(tmp_path: Path) -> None:
    picture(2).save(add(tmp_path, "x.bmp"))
    assert problems(tmp_path) == ["x.bmp: the same pixels as 002.png"]


# What is wrong with a caption


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_caption(tmp_path: Path, text: str) -> None:
    (write_pairs(tmp_path) / "003.txt").write_text(text)
    assert problems(tmp_path) == ["003.png: no caption"]


def test_no_caption_file(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "003.txt").unlink()
    assert problems(tmp_path) == ["003.png: no caption: there is no 003.txt"]


def test_caption_too_long(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "003.txt").write_text("a" * 2001)
    assert problems(tmp_path) == ["003.png: caption of 2001 characters; at most 2000 are read"]


def test_caption_is_not_utf8(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "003.txt").write_text("a", encoding="utf-16")
    assert problems(tmp_path) == ["003.png: 003.txt is not UTF-8 text"]


@pytest.mark.parametrize("text", [None, 7, ["a"], "", "\ud800"])
def test_metadata_without_a_usable_text(tmp_path: Path, text: object) -> None:
    rows = [*listed(7), {"file_name": "007.png", "text": text}]
    (problem,) = problems(write_metadata(write_pairs(tmp_path), rows))
    assert problem.startswith("007.png: ") and "caption" in problem


def test_picture_without_an_entry(tmp_path: Path) -> None:
    assert problems(write_metadata(write_pairs(tmp_path), listed(7))) == [
        "007.png: no entry in metadata.jsonl"
    ]


# What is wrong with metadata


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"file_name": ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "expected an object, got list"),
        ('{"text": "a", "image": "b"}', "no file_name (keys found: text, image)"),
        ('{"file_name": 3, "text": "a"}', "no file_name (keys found: file_name, text)"),
        ('{"file_name": "gone.png", "text": "a"}', "gone.png: no such file"),
        ('{"file_name": "002.png", "text": "a"}', "002.png is listed twice, first on line 3"),
        ('{"file_name": "./002.png", "text": "a"}', "./002.png is listed twice, first on line 3"),
        ('{"file_name": "folder.png", "text": "a"}', "folder.png is not a file"),
        (json.dumps({"file_name": "a" * 5000, "text": "a"}), "a" * 5000 + ": no such file"),
    ],
)
def test_line_of_metadata(tmp_path: Path, line: str, problem: str) -> None:
    write_metadata(write_pairs(tmp_path), [*listed(), line])
    if "folder.png" in line:
        (tmp_path / "folder.png").mkdir()
    (found,) = problems(tmp_path)
    assert found.startswith(f"metadata.jsonl line 9: {problem}")


@pytest.mark.parametrize(
    "name",
    ["/etc/x.png", "//x.png", "../secret.png", "a/../../secret.png", "a\\b.png", "C:/x.png", "file://x.png",
     "https://example.org/x.png", "x\0.png", "..", "images/../003.png"],
)  # fmt: skip
def test_file_name_that_leads_out(tmp_path: Path, name: str) -> None:
    picture(99).save(tmp_path / "secret.png")
    folder = write_pairs(tmp_path / "data")
    write_metadata(folder, [*listed(), {"file_name": name, "text": "a"}])
    (problem,) = problems(folder)
    assert problem.startswith("metadata.jsonl line 9: file_name must be a path inside the folder, got")


@pytest.mark.parametrize("with_metadata", [True, False])
def test_link_that_leads_out(tmp_path: Path, with_metadata: bool) -> None:
    picture(99).save(tmp_path / "secret.png")
    folder = write_pairs(tmp_path / "data")
    (folder / "008.png").symlink_to(tmp_path / "secret.png")
    (folder / "008.txt").write_text("a")
    if with_metadata:
        write_metadata(folder, listed(9))
    (problem,) = problems(folder)
    assert problem.endswith("008.png leads out of the folder")


@pytest.mark.parametrize("name", ["008.txt", "metadata.jsonl"])
def test_text_behind_a_link_that_leads_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("password")
    folder = write_pairs(tmp_path / "data", 9)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    (problem,) = problems(folder)
    assert f"{name} leads out of the folder" in problem
    assert "password" not in problem


def test_link_to_itself(tmp_path: Path) -> None:
    path = add(tmp_path, "x.png")
    path.symlink_to(path)
    (problem,) = problems(tmp_path)
    assert problem.startswith("x.png: ")


def test_links_inside_the_folder_are_fine(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "003.png").rename(tmp_path / "blobs/3")
    (tmp_path / "003.png").symlink_to("blobs/3")
    assert "003.png" in examples(load_dataset(str(tmp_path)))


def test_metadata_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    assert problems(tmp_path) == ["metadata.jsonl: metadata.jsonl is not UTF-8 text"]


# The list of problems


@pytest.mark.fault(22)
def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    (tmp_path / "000.txt").unlink()
    (tmp_path / "001.txt").write_text("")
    (tmp_path / "001.png").write_bytes(b"")
    with pytest.raises(UsageError) as caught:
        load_dataset(str(tmp_path))
    assert str(caught.value).split("\n") == [
        f"{tmp_path}: 3 problems in 8 images",
        "000.png: no caption: there is no 000.txt",
        "001.png: no caption",
        "001.png: an empty file",
    ]


def test_every_kind_of_bad_picture_is_listed_and_odd_ones_are_read(tmp_path: Path) -> None:
    turned, cmyk = add(tmp_path, "turned.jpg"), add(tmp_path, "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(72).save(turned, exif=exif)
    picture(73).convert("CMYK").save(cmyk)
    (tmp_path / "000.png").write_bytes(b"")
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes()[:-40])
    frames = [picture(70), picture(71)]
    frames[0].save(tmp_path / "002.png", save_all=True, append_images=frames[1:])
    Image.new("1", (9_600, 9_600)).save(tmp_path / "003.png")
    found = problems(tmp_path)
    assert [line.split(": ")[0] for line in found] == ["000.png", "001.png", "002.png", "003.png"]
    for line, problem in zip(found, ("an empty file", "damaged", "animated", "too many pixels"), strict=True):
        assert problem in line


def test_at_most_fifty_are_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, 53)
    for text in tmp_path.glob("*.txt"):
        text.write_text("")
    lines = problems(tmp_path)
    assert len(lines) == 51
    assert lines[-1] == "... and 3 more"


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    add(tmp_path, "\x1b[2J.png").touch()
    assert problems(tmp_path) == ["\\x1b[2J.png: an empty file"]


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures in it; expected metadata.jsonl"):
        load_dataset(str(tmp_path))


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    (write_pairs(tmp_path) / "._000.png").write_bytes(b"\0")
    assert len(examples(load_dataset(str(tmp_path)))) == 8


# Parquet, arrow, Hub


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def table(first: int = 0, num: int = 8, columns: dict[str, list[object]] | None = None) -> datasets.Dataset:
    numbers = range(first, first + num)
    columns = columns or {"text": [f"caption {n}" for n in numbers]}
    rows = datasets.Dataset.from_dict({"n": numbers, "photo": [picture(n) for n in numbers], **columns})
    return rows.cast_column("photo", datasets.Image())


def write_parquet(file: Path, rows: datasets.Dataset) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(file)
    return file.parent


def test_parquet_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", table())
    (tmp_path / "README.md").write_text("hello")
    capfd.readouterr()
    dataset = load_dataset(str(tmp_path))
    assert capfd.readouterr() == ("", "")
    assert examples(dataset) == {f"row {n}": f"caption {n}" for n in range(8)}
    example = dataset.train[0]
    assert example.image() == picture(int(example.name.removeprefix("row ")))


def test_parquet_with_splits_of_its_own(tmp_path: Path) -> None:
    for first, split in ((0, "train"), (20, "validation"), (40, "test")):
        write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", table(first, 3))
    dataset = load_dataset(str(tmp_path))
    assert [example.name for example in dataset.dev] == ["dev row 0", "dev row 1", "dev row 2"]
    assert dataset.test[0].image() == picture(40)


def test_without_a_dev_split_only_train_is_used(tmp_path: Path) -> None:
    for first, split in ((0, "train"), (40, "test")):
        write_parquet(tmp_path / f"data/{split}-00000-of-00001.parquet", table(first))
    assert set(examples(load_dataset(str(tmp_path)))) == {f"row {n}" for n in range(8)}


def test_saved_to_disk(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table(), dev=table(20), test=table(40)).save_to_disk(tmp_path / "three")
    assert len(examples(load_dataset(str(tmp_path / "one")))) == 8
    assert len(load_dataset(str(tmp_path / "three")).dev) == 8


@pytest.mark.parametrize(
    ("columns", "first"),
    [({"label": ["x"] * 8, "caption": list("abcdefgh")}, "a"), ({"prompt": list("abcdefgh")}, "a")],
)
def test_columns_are_found(tmp_path: Path, columns: dict[str, list[object]], first: str) -> None:
    write_parquet(tmp_path / "x.parquet", table(columns=columns))
    assert examples(load_dataset(str(tmp_path)))["row 0"] == first


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": [1], "text": ["a"]}, "no pictures .* columns found: n, text"),
        ({"image": [1], "text": ["a"]}, "the column image does not hold pictures"),
    ],
)
def test_table_without_pictures(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    write_parquet(tmp_path / "x.parquet", datasets.Dataset.from_dict(columns))
    with pytest.raises(UsageError, match=message):
        load_dataset(str(tmp_path))


def test_table_without_captions(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", table(columns={"label": list(range(8))}))
    with pytest.raises(UsageError, match="no captions .* columns found: n, photo, label"):
        load_dataset(str(tmp_path))


def test_problems_name_the_row(tmp_path: Path) -> None:
    content = [{"bytes": b"hello", "path": None}, {"bytes": None, "path": "/etc/hostname"}, None]
    rows = datasets.Dataset.from_dict({"image": content, "text": ["a", "b", None]})
    write_parquet(tmp_path / "x.parquet", rows.cast_column("image", datasets.Image()))
    assert problems(tmp_path) == [
        "row 0: not a picture in PNG, JPEG, WebP or BMP format",
        "row 1: no picture is stored in it",
        "row 2: no caption",
        "row 2: no picture is stored in it",
    ]


def test_damaged_parquet(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UsageError, match="cannot be read as a data set"):
        load_dataset(str(tmp_path))


def test_hub_rows_open_only_files_that_came_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, own = write_pairs(tmp_path / "hub"), write_pairs(tmp_path / "own", 1, first=50)
    files = [*sorted(hub.glob("*.png")), own / "050.png", hub / "../own/050.png"]
    content = [{"bytes": None, "path": str(file)} for file in files]
    rows = datasets.Dataset.from_dict({"image": content, "text": [f"caption {n}" for n in range(10)]})
    rows = rows.cast_column("image", datasets.Image())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: {"train": rows})
    with pytest.raises(UsageError) as caught:
        load_dataset("owner/name")
    assert str(caught.value).split("\n")[1:] == [f"row {n}: no picture is stored in it" for n in (8, 9)]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: {"train": rows.select(range(8))})
    assert load_dataset("owner/name").test[0].image().size == (20, 24)


@pytest.mark.fault(24)
def test_hub_data_set_out_of_reach(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(MissingError) as caught:
        load_dataset("owner/name@v1")
    assert "hf download owner/name --repo-type dataset --revision v1 --local-dir DIR" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("./nowhere", UsageError, "no such folder"),
        ("/nowhere/at/all", UsageError, "no such folder"),
        ("~nobody-of-this-name/x", UsageError, "cannot be read"),
        ("nowhere", UsageError, "one of emoji/streamline, emoji/pixel16, emoji/fluent-3d"),
        ("a/b/c", UsageError, "one of emoji/streamline"),
        ("", UsageError, "one of emoji/streamline"),
        ("a\0b", UsageError, "one of emoji/streamline"),
        ("photos/cats", MissingError, "neither a folder here nor a data set"),
    ],
)
def test_source_that_is_not_there(source: str, error: type[BenchError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_dataset(source)


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(UsageError, match="is a file; give the folder it is in"):
        load_dataset(str(tmp_path / "a.zip"))


def test_a_bare_name_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs(tmp_path / "photos/cats")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("photos/cats").name == "photos/cats"
    monkeypatch.chdir(tmp_path / "photos")
    dataset = load_dataset("cats")
    monkeypatch.chdir("/")
    assert dataset.train[0].image().size == (20, 24)


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'datasets', 'huggingface_hub'}"
    code = f"import sys, bench.dataset, bench.prompts; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
