"""Pictures and texts of one's own, from files to a whole run.     python -m pytest -q tests/test_folder.py"""
import json
import os
import random
import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from nanoharmon import data
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import pad_square
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import IGNORE, IMAGE, Tokenizer
from nanoharmon.training.batches import make_batches
from nanoharmon.training import folder, formats, imports, watch
from nanoharmon.training.folder import FolderData
from nanoharmon.training.formats import read_entries
from nanoharmon.training.recipe import STAGES, Config, DataConfig, parse_mix
from nanoharmon.world.source import ShapesData

TEXTS = ["a red thing", "ein blaues Ding", "зелёная вещь", "黄色的东西", "یک چیز سفید", "a 🙂 of sorts"]


def picture(i, size=(24, 24)):
    """Pictures that all differ: the i-th color, darker to the right."""
    shade = np.linspace(255, 60, size[0]) / 255
    color = np.array([(i * 37) % 200 + 55, (i * 91) % 200 + 55, (i * 53) % 200 + 55])
    return Image.fromarray(np.broadcast_to(shade[:, None] * color, (size[1], size[0], 3)).astype(np.uint8))


def add_lines(path, rows):
    with open(path, "a", encoding="utf-8") as f:
        f.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures; every third is wide; two kinds of labels, or none."""
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(12):
        picture(i, (40, 24) if i % 3 == 0 else (24, 24)).save(root / f"{i}.png")
    add_lines(root / "metadata.jsonl", [{"file_name": f"{i}.png", "text": f"{TEXTS[i % 6]} {i}",
                                         **({"label": "ab"[i % 2]} if i > 3 else {})} for i in range(12)])
    return root


def talk(*texts, **more):
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)], **more}


def import_(name, cache, images="", known={}, has_begun=False):
    """What an import says, and the folder in the cache."""
    source = imports.find_source(str(name), str(images), cache, 16, 3, known, has_begun)
    return imports.import_source(source, cache), source.folder


def imported(name, cache, images=""):
    return FolderData(cache / import_(name, cache, images)[1], str(name))


@pytest.fixture
def own(photos, tmp_path):
    return imported(photos, tmp_path / "cache")


@pytest.fixture
def chat(photos, tmp_path):
    """Conversations about the pictures, short and long ones, and some of text only."""
    rows = [talk("<image>\nwhat?", f"thing {i}", image=f"{i}.png") for i in range(11)]
    rows += [talk(*(t for k in range(40) for t in (f"question {k}", f"reply {k}")), image="11.png")] * 5
    rows += [talk("no picture", "none at all")] * 5
    (tmp_path / "chat.json").write_text(json.dumps(rows), encoding="utf-8")
    return imported(tmp_path / "chat.json", tmp_path / "cache", photos)


def batches(sources, *mix, **llm):
    """Latents tell the row of the picture they are of; rows of the second source from 1000."""
    config = Config.preset("pico")
    config.data = DataConfig(scenes=50, board=2, mix=mix or tuple(f"{s.name}:1" for s in sources))
    vars(config.model.llm).update(llm)
    for k, source in enumerate(sources):
        source.latents[16] = np.zeros((source.rows, 4, 4), np.float16)
        source.latents[16][:, 0, 0] = np.arange(source.rows) + 1000 * k
    texts = [text for s in sources if s.name != "shapes" for text in s.corpus()]
    return make_batches(config, sources, Tokenizer.train(texts, 384), "cpu")


def test_bad_lines_are_named_and_good_ones_kept(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    picture(1).save(root / "a.png")
    bad = [*({"file_name": name, "text": "x"} for name in ("../secret.png", "/etc/passwd", "link.png")),
           '{"file_name": "a.png", "text"', "[1]", {"text": "no name"}, {"file_name": 5},
           {"file_name": "a.png", "text": 5}, {"file_name": "a\0.png"}, {"file_name": "a.png", "label": True},
           {"file_name": "a.png", "label": -1}, {"file_name": "a.png", "text": "\ud800"}, '{"a":' * 100000]
    good = {"file_name": "a.png", "text": " hi "}, {"file_name": "./a.png", "label": 3.0}, {"file_name": "a.png"}
    add_lines(root / "metadata.jsonl", [*bad, *good, ""])
    found = read_entries(str(root))
    assert [(e.path.name, e.caption, e.label) for e in found.entries] == [
        ("a.png", "hi", None), ("a.png", None, 3), ("a.png", None, None)]
    assert len(found.problems) == len(bad) and all(f"line {i}: " in p for i, p in enumerate(found.problems, 1))
    assert [i for i, p in enumerate(found.problems) if "outside of the folder" in p] == [0, 1, 2]
    (root / "metadata.jsonl").write_bytes(b"\n")
    with pytest.raises(ValueError, match="metadata.jsonl: no lines"):
        read_entries(str(root))


def test_pairs_also_in_subfolders(tmp_path):
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_bytes(b"secret")
    for name in "sub/b.JPG", "a.png", "no.webp", "out.png", "bytes.png":
        picture(1).save(root / name)
    for name, content in ("a", "\ufeffa text\n".encode()), ("sub/b", b"ein Bild"), ("bytes", b"\xff\xfe\xff"):
        (root / f"{name}.txt").write_bytes(content)
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    found = read_entries(str(root))
    assert [(e.path.name, e.caption) for e in found.entries] == [
        ("a.png", "a text"), ("no.webp", None), ("b.JPG", "ein Bild")]
    first, second = found.problems
    assert "bytes.txt is not text in UTF-8" in first and "outside of the folder" in second


def test_llava_conversations(tmp_path):
    found = read_entries(str(Path(__file__).with_name("llava.json")), str(tmp_path))
    assert [(e.path and e.path.name, e.turns) for e in found.entries] == [
        ("a.png", [("user", "What is it?"), ("assistant", "A cat."), ("user", "Where?"), ("assistant", "Here.")]),
        ("a.png", [("user", "Describe it."), ("assistant", "A dog.")]),
        (None, [("user", "Hello"), ("assistant", "Hi")])]
    assert [int(p.split("entry ")[1].split(":")[0]) for p in found.problems] == list(range(3, 16))
    for word, problem in zip(("video", "<video>", "2 images"), found.problems[-3:], strict=True):
        assert f"about {word}," in problem


def test_llava_in_its_other_spellings(tmp_path):
    said, plain = [("user", "What?"), ("assistant", "A cat.")], {"role": "assistant", "content": "A cat."}
    rows = [{"images": ["a.png"], "messages": [{"role": "user", "content": "<image>What?"}, plain]},
            {"image": ["a.png"], "messages": [{"role": "user", "content": [
                {"type": "image"}, {"type": "text", "text": "What?"}]}, plain]},
            talk("<image>\nWhat?", "A cat.", "And?", image="a.png"), *(talk("What?", "A cat.", images=i) for i in ([], [""]))]
    rows[0]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"messages": "x"}])), encoding="utf-8")
    found = read_entries(str(tmp_path / "chat.jsonl"), str(tmp_path))
    assert [(e.path and e.path.name, e.turns) for e in found.entries] == [("a.png", said)] * 3 + [(None, said)] * 2
    assert len(found.problems) == 1 and found.notes == ["not read: 1 system turn, 1 question without an answer"]
    with pytest.raises(ValueError, match="holds|list of a folder"):
        (tmp_path / "metadata.jsonl").touch()
        read_entries(str(tmp_path / "metadata.jsonl"), str(tmp_path))


# (files and what is in them; where the pictures lie; texts; labels; words of the notes), of a folder of pictures 0 to 3
LAYOUTS = json.loads(Path(__file__).with_name("folders.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_as_people_have_them(layout, tmp_path):
    files, place, texts, labels, notes = LAYOUTS[layout]
    root = tmp_path / "in"
    for name, content in {**{str(Path(place, f"{i}.png")): i for i in range(4)}, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            picture(content).save(root / name)
        else:
            (root / name).write_text(content, encoding="utf-8")
    found = read_entries(str(root))
    assert [e.caption for e in found.entries] == texts and [e.label for e in found.entries] == labels
    assert len(found.problems) == ("folders" in layout and "x/metadata.jsonl" in files)
    said = "\n".join(found.notes)
    assert all(words in said for words in notes), said


def test_a_quote_that_is_not_closed_costs_its_own_line_only(tmp_path):
    for i in range(6):
        picture(i).save(tmp_path / f"{i}.png")
    rows = '0.png,a', '1.png,"b', '2.png,"c\nd"', '3.png,"he said ""e"""', '4.png,"he said "f""', '5.png,6" tall'
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *rows]), encoding="utf-8")
    found = read_entries(str(tmp_path))
    assert [e.caption for e in found.entries] == ["a", "c\nd", 'he said "e"', '6" tall']
    assert [p.split(": ")[0].split("line ")[1] for p in found.problems] == ["3", "7"]
    assert all("a quote that is not closed" in p for p in found.problems)


def test_what_we_write_does_not_become_data(photos, monkeypatch):
    (photos / "metadata.jsonl").unlink()
    (photos / "out" / "samples").mkdir(parents=True)
    picture(50).save(photos / "out" / "samples" / "a.png")
    (photos / "out" / "train_config.json").touch()
    assert len(read_entries(str(photos)).entries) == 12
    monkeypatch.chdir(photos)
    with pytest.raises(ValueError, match="one of its pictures the next time; pass --out"):
        data.main(["."])


def test_paths_are_what_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_mix(["a:3", "b:.5", "a:2", "odd:name"]) == [("a", 2), ("b", 0.5), ("odd:name", 1)]
    (tmp_path / "a:3").mkdir()
    assert parse_mix(["a:3", "a:3:2"]) == [("a:3", 2)]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_mix(["shapes:1", " ~/b:2", " "]) == [("shapes", 1), (f"{tmp_path}/b", 2)]
    assert str(train.parse_args(["--out=~/runs"])[0].out) == f"{tmp_path}/runs"
    picture(0).save(tmp_path / unicodedata.normalize("NFD", "café.png"))          # as a Mac's zip has it
    add_lines(tmp_path / "metadata.jsonl", [{"file_name": unicodedata.normalize("NFC", "café.png")}])
    assert read_entries(".").entries[0].path.is_file()


def test_pictures_in_tars_are_those_of_a_folder(photos, tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    for i in range(12):
        shutil.copy(photos / f"{i}.png", root / f"{i}.png")
        name, text = (f"{i}.txt", f"text {i}") if i % 2 else (f"{i}.json", f'{{"text": "text {i}"}}')
        (root / name).write_text(text, encoding="utf-8")
        (root / f"{i}.cls").write_text(str(i % 3), encoding="utf-8")
    loose = imported(root, tmp_path / "cache")
    (root / "0.seg.png").write_bytes(b"a mask")
    for tar, numbers in ("a.tar", range(7)), ("b.tar", range(7, 12)):
        with tarfile.open(root / tar, "w") as file:
            for name in sorted(p.name for p in root.iterdir() if p.name.split(".")[0] in map(str, numbers)):
                file.add(root / name, name)
    for path in [*root.glob("*.png"), *root.glob("*.txt"), *root.glob("*.json"), *root.glob("*.cls")]:
        path.unlink()
    packed = imported(root, tmp_path / "cache")
    assert packed.rows == loose.rows and len(packed.held) == 4
    assert {(i["caption"], i["class"]) for i in packed.items + packed.held} == {(f"text {i}", i % 3) for i in range(12)}
    assert "left out: 1 .png" in read_entries(str(root)).notes[0]
    with tarfile.open(tmp_path / "dot.tar", "w") as file:            # `tar cf dot.tar .`: one folder is no label
        for name in "./a.png", "./cat/b.png":
            file.add(photos / "0.png", name)
        for link, kind in (tarfile.TarInfo("c.png"), tarfile.LNKTYPE), (tarfile.TarInfo("d.png"), tarfile.SYMTYPE):
            link.type, link.linkname = kind, "./a.png"
            file.addfile(link)
    found = read_entries(str(tmp_path / "dot.tar"))
    assert [e.label for e in found.entries] == [None] * 3 and "left out: 1 link in a .tar;" in found.notes[0]
    whole, second = (root / "b.tar").read_bytes(), read_entries(str(root / "b.tar")).entries[1].path.start
    for cut in second - 512, second + 9:                             # between two of its files, and inside of one
        (root / "b.tar").write_bytes(whole[:cut])
        found = read_entries(str(root / "b.tar"))
        assert found.entries and len(found.problems) == 1 and "cut short" in found.problems[0]
        assert {e.caption for e in found.entries} <= {f"text {i}" for i in range(12)} | {None}


def test_the_first_view_is_padded_and_the_others_are_crops(own):
    assert own.rows == 8 + 4 * 4 and len(own.items) == 8 and len(own.held) == 4
    by_text = {item["caption"]: item for item in own.items + own.held}
    wide, square = by_text[TEXTS[3] + " 3"], by_text[TEXTS[4] + " 4"]
    assert (wide["views"], square["views"]) == (4, 1)
    padded = pad_square(picture(3, (40, 24))).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(own.pixels[wide["row"]], padded)
    crops = own.pixels[wide["row"] + 1:wide["row"] + 4].astype(int)
    assert (np.diff(crops[:, 8, :, 0].mean(1)) < 0).all() and (crops != 127).any()    # to the right, where it is darker
    assert {folder.crop(wide, random.Random(i)) for i in range(40)} == set(range(wide["row"] + 1, wide["row"] + 4))
    assert folder.crop(square, random.Random(0)) == square["row"]


def test_what_is_held_out_is_never_trained_on(photos, tmp_path):
    add_lines(photos / "metadata.jsonl", [{"file_name": "0.png", "text": "the same picture again"}])
    own = imported(photos, tmp_path / "cache")
    held = {row for item in own.held for row in range(item["row"], item["row"] + item["views"])}
    assert len(held) >= 4 and any(item["caption"] == "the same picture again" for item in own.held)
    rng, met = random.Random(0), set()
    for _ in range(200):
        met |= {own.class_item(rng)[0], own.generation_item(rng)[0], own.understanding_item(rng)[0]}
    assert met.isdisjoint(held) and len(met) == own.rows - len(held)
    texts = {item["caption"] for item in own.held}
    assert texts.isdisjoint(own.corpus()) and texts.isdisjoint(t for _ in range(200) for _, t in own.text(rng))


def test_a_few_broken_files_are_named_and_left_out(photos, tmp_path):
    cut, rows = (photos / "0.png").read_bytes(), (photos / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    (photos / "cut.png").write_bytes(cut[:len(cut) // 2])
    add_lines(photos / "metadata.jsonl", [*rows * 6, {"file_name": "cut.png"}, "{", {"file_name": "caf\udce9.png"},
                                       {"file_name": "x" * 300}])
    found, name = import_(photos, tmp_path / "cache")
    assert "4 broken" in found and "cut.png: damaged or truncated" in found and "line 86: " in found
    assert "caf\\udce9.png: no such file" in found and "xx: File name too long" in found and FolderData(tmp_path / "cache" / name, "").rows
    add_lines(photos / "metadata.jsonl", [{"file_name": "gone.png"}])
    with pytest.raises(ValueError, match="5 of 89 entries are broken.*5%"):
        import_(photos, tmp_path / "new")


def test_what_is_left_out_is_counted_by_its_suffix(photos, tmp_path, capsys, monkeypatch):
    data.main([str(photos), "--out", str(tmp_path / "data.png")])
    told = capsys.readouterr().out
    assert all(w in told for w in ("12 entries, 12 pictures; 0 entries broken", "texts: 12, of", "labels: 2; a 4, b 4"))
    for i, name in enumerate(["a.heic", "b.HEIC", "c.mp4", "d.jfif", ".hidden.heic", "d.txt", "a.txt"]):
        picture(i + 20).save(photos / name, "JPEG")
    (photos / "away").symlink_to(tmp_path, target_is_directory=True)
    assert import_(photos, tmp_path / "cache")[0].endswith("2 classes, 0 broken\n  left out: "
        "2 .heic, 2 .txt, 1 .jfif, 1 .mp4, 1 link to a folder; no good line of metadata.jsonl names them")
    (photos / "metadata.jsonl").unlink()
    data.main([str(photos), "--out", str(tmp_path / "data.png")])
    assert "left out: 2 .heic, 1 .mp4, 1 .txt, 1 link to a folder; pictures end in .png" in capsys.readouterr().out
    monkeypatch.setattr(os, "walk", lambda top, onerror: onerror(PermissionError(13, "", f"{top}/a")) or [])
    assert formats.all_files(photos) == ["a//"] and formats.count_suffixes(["a//"]) == "1 unreadable folder"


def test_a_single_picture_is_learned_by_heart(tmp_path):
    picture(1).save(tmp_path / "a.png")
    add_lines(tmp_path / "metadata.jsonl", [{"file_name": "a.png", "text": "a thing"}])
    own = imported(tmp_path, tmp_path / "cache")
    assert own.held == [] and len(own.items) == 1 and watch.shown(own) == own.items


def test_a_run_goes_on_with_what_it_read_and_says_what_has_changed(photos, own, tmp_path, monkeypatch):
    cache, known = tmp_path / "cache", {str(photos): own.cache_name}
    shutil.copytree(photos, tmp_path / "moved")
    with monkeypatch.context() as m:
        m.setattr(imports, "views_of", lambda *_: pytest.fail("decoded again"))
        assert import_(photos, cache) == import_(tmp_path / "moved", cache) == ("", own.cache_name)
        picture(77).save(photos / "1.png")
        said, name = import_(photos, cache, known=known, has_begun=True)
        assert name == own.cache_name and "(12 entries then, 12 now); the run goes on" in said
        shutil.rmtree(photos)
        said, name = import_(photos, cache, known=known, has_begun=True)
        assert name == own.cache_name and "cannot be read; the run goes on" in said
        with pytest.raises(ValueError, match="no such file or folder"):
            import_(photos, cache, known=known)
    add_lines(tmp_path / "moved" / "metadata.jsonl", [{"file_name": "1.png", "text": "another text"}])
    said, name = import_(tmp_path / "moved", cache, known={str(tmp_path / "moved"): own.cache_name})
    assert "it is read again" in said and name != own.cache_name
    imports.drop_others(cache, [name])
    assert [path.name for path in cache.iterdir()] == [name]
    for before in own.cache_name, name:                              # train_config.json tells it when the cache is gone
        said, _ = import_(tmp_path / "moved", tmp_path / before, known={str(tmp_path / "moved"): before})
        assert ("is not what was read before" in said) == (before != name)


def test_two_sources_that_trade_their_names_stay_what_they_were(photos, own, tmp_path):
    cache, other = tmp_path / "cache", tmp_path / "other"
    shutil.copytree(photos, other)
    add_lines(other / "metadata.jsonl", [{"file_name": "1.png", "text": "another text"}])
    known = {str(photos): own.cache_name, str(other): imported(other, cache).cache_name}
    for old, new in (photos, tmp_path / "x"), (other, photos), (tmp_path / "x", other):
        old.rename(new)
    for name, folder in known.items():                               # their weights in --mix go by these names
        said, found = import_(name, cache, known=known, has_begun=True)
        assert found == folder and "has changed" in said and "goes on with what it read then" in said


def test_an_import_that_was_stopped_goes_on(photos, tmp_path, monkeypatch):
    decoded, real, cache = [], imports.views_of, tmp_path / "cache"

    def views_of(path, *rest):
        decoded.append(path.name)
        return 1 / 0 if len(decoded) == 7 else real(path, *rest)
    for name, value in ("WORKERS", 1), ("views_of", views_of), ("MOST_BROKEN", 0.1):
        monkeypatch.setattr(imports, name, value)
    (photos / "3.png").write_bytes(b"broken")
    with pytest.raises(ZeroDivisionError):
        import_(photos, cache)
    [part] = cache.glob("*.part")
    kept, tried = len((part / "done.jsonl").read_text(encoding="utf-8").splitlines()), len(decoded)
    for path in part / "pixels.u8", part / "done.jsonl":                     # half a picture, half a line
        imports.os.truncate(path, path.stat().st_size - 9)
    for module, name in (imports, "read_done"), (imports.os, "fsync"):       # while it checks what is there; at its end
        with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
            m.setattr(module, name, lambda *_: 1 / 0)
            import_(photos, cache)
    name = import_(photos, cache)[1]
    assert 1 < kept < 12 and len(decoded) == tried + 13 - kept and not part.exists()
    import_(photos, tmp_path / "whole")
    for file in "pixels.u8", "items.jsonl", "about.json":
        assert (cache / name / file).read_bytes() == (tmp_path / "whole" / name / file).read_bytes()


def test_a_mixed_batch_is_a_function_of_its_seed_and_has_its_shares(own):
    mixed = batches([ShapesData(DataConfig(scenes=50, board=2)), own], "shapes:1", f"{own.name}:3")

    def batch(rng):
        return [mixed.images(rng, 6, 16), *mixed.class_pictures(rng, 6, 16), *next(mixed.texts(rng, 6)),
                *next(mixed.generation(rng, 6, 16, 0.5)), *next(mixed.understanding(rng, 6, 16))]
    a, again, other = (batch(random.Random(seed)) for seed in ("0/1", "0/1", "0/2"))
    assert all(torch.equal(x, y) for x, y in zip(a, again, strict=True)) and not torch.equal(a[0], other[0])
    latents, labels = mixed.class_pictures(random.Random(0), 400, 16)
    assert {label for label in labels.tolist() if label >= 140} == {140, 141} and min(labels) == -1  # 140 of shapes
    for found in (latents, torch.cat([p[0] for p in mixed.generation(random.Random(0), 400, 16, 0)]),
                  torch.cat([p[0] for p in mixed.understanding(random.Random(0), 400, 16)])):
        assert 0.68 < (found[:, 0, 0] >= 1000).float().mean() < 0.82


def test_own_pictures_have_their_own_classes_and_captions_in_any_language(photos, tmp_path):
    own = imported(photos, tmp_path / "cache")
    made, items = batches([own]), {item["row"] + k: item for item in own.items for k in range(item["views"])}
    latents, labels = made.class_pictures(random.Random(0), 60, 16)
    assert [{-1: None}.get(i, i) for i in labels.tolist()] == [items[int(x[0, 0])]["class"] for x in latents]
    assert set(labels.tolist()) == {-1, 0, 1}
    for latents, ids, is_real in made.generation(random.Random(0), 60, 16, 0.0):
        for latent, row, real in zip(latents, ids, is_real):
            assert items[int(latent[0, 0])]["caption"].lower() in made.tokenizer.decode(row[real].tolist())
    for ids, labels, _ in made.texts(random.Random(0), 20):                          # learned whole, without pictures
        is_real = ids != made.tokenizer.pad
        assert (labels[is_real] == ids[is_real]).all() and (labels[~is_real] == IGNORE).all() and (ids >= 0).all()


def test_conversations_are_cut_at_a_turn_and_may_have_no_picture(chat):
    made, kinds = batches([chat], max_position_embeddings=200), set()
    first = {item["turns"][1][1]: item["row"] for item in chat.items}
    for latents, ids, labels, _ in made.understanding(random.Random(1), 60, 16):
        has_picture = (ids == IMAGE).any(1)
        assert ids.shape[1] <= made.room + 4 + 2
        assert len(latents) == has_picture.sum() and set((ids == IMAGE).sum(1).tolist()) <= {0, 4 + 2}
        shown = iter(latents[:, 0, 0].tolist())              # the number of its row
        for row, label in zip(ids, labels):
            said = made.tokenizer.decode(label[label != IGNORE].tolist())
            kinds.add(said.split()[0])
            assert IMAGE not in row.tolist() or next(shown) == first["reply 0" if "reply" in said else said]
            if "reply" in said:
                n = said.count("reply")
                assert 1 < n < 40 and said == "".join(f"reply {k}" for k in range(n))
            else:
                assert ("thing" in said) == (IMAGE in row.tolist()) and "what?" not in said and "no picture" not in said
    assert kinds == {"reply", "thing", "none"} and not made.notes() and made.room == 200 - 16 - 2   # S at most, and U
    with pytest.raises(ValueError, match="no text fits"):
        batches([chat], max_position_embeddings=28)
    made.left_out["x"] = 3
    assert "x: 3 texts are not used" in made.notes()[0] and not chat.has("texts")


def test_texts_without_any_picture_train_and_give_all_gradients(tmp_path):
    (tmp_path / "chat.json").write_bytes(json.dumps([talk("no picture", f"none {i}") for i in range(9)]).encode())
    texts, model = imported(tmp_path / "chat.json", tmp_path / "cache", tmp_path), Harmon(Config.preset("pico").model)
    alone = batches([texts]).understanding(random.Random(0), 4, 16)
    sum(model.understanding_loss(*batch, (2, 2)) for batch in alone).backward()      # several processes wait for all
    assert all(p.grad is not None and not p.grad.any() for p in model.proj_in.parameters())             # gradients


def test_no_class_is_the_null_class():
    mar = Harmon(Config.preset("pico").model).mar.eval()
    for p in mar.diffloss.parameters():                               # its last layer begins with zeros
        torch.nn.init.normal_(p, std=0.1)
    mar.class_emb.weight.data[0] = mar.fake_latent.data[0]
    none, null, other = (mar.class_loss(torch.ones(4, 4, 4), torch.tensor([label] * 4),
                                        *(torch.Generator().manual_seed(1) for _ in "ab")) for label in (-1, 0, 1))
    assert none == null != other


def test_a_whole_run_on_own_pictures_outlives_their_loss(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(train.evaluate, "quick", lambda *_, **__: pytest.fail("there are no shapes"))
    out = tmp_path / "out"
    flags = ["--preset", "pico", "--procs", "1", "--data", str(photos), "--out", str(out), "--sample-every", "99",
             "--stage_3.parts=1", *(f"--stage_{s}.steps=1" for s in STAGES)]          # parts are of boards: none here
    train.main([*flags, "--stage", "vae", "--stage", "llm", "--stage", "mar", "--stage", "1"])
    out = out.rename(tmp_path / "moved")
    photos.rename(tmp_path / "elsewhere")
    flags[flags.index("--out") + 1] = str(out)
    latents = {path.name: path.read_bytes() for path in (out / "cache").glob("latents_*")}
    train.main(flags)
    assert "cannot be read; the run goes on with what it read before" in capsys.readouterr().out
    before = json.loads((out / "train_config.json").read_bytes())
    flags[flags.index("--data") + 1] = str(tmp_path / "elsewhere")               # the same pictures
    train.main([*flags, "--stage_3.lr", "5"])
    assert "nothing to do" in capsys.readouterr().out
    after = json.loads((out / "train_config.json").read_bytes())                 # it is that of what was trained
    assert list(after.pop("sources").values()) == list(before.pop("sources").values()) and after == before
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert 0 < results[f"{photos}/vae_psnr"] < 60 and results[f"{photos}/held_out_pictures"] == 4
    pipe = Pipeline.load(out / "final")
    assert not {"layout", "board"} & set(pipe.meta) and (out / "samples" / "final.png").exists()
    assert latents == {name: (out / "cache" / name).read_bytes() for name in latents}       # kept, not made anew
