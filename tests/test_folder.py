"""Pictures and texts of one's own: formats, broken files, batches, a whole run.

    python -m pytest -q tests/test_folder.py
"""
import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import train
from nanoharmon import cli
from nanoharmon.harmon import Harmon
from nanoharmon.pictures import pad_square, read_image
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import IGNORE, IMAGE, Tokenizer
from nanoharmon import data
from nanoharmon.training import folder
from nanoharmon.training.batches import make_batches
from nanoharmon.training.entries import read_entries
from nanoharmon.training.folder import FolderData, folder_name, import_source
from nanoharmon.training.latents import encode_share, latents_path, new_cache
from nanoharmon.training.recipe import Config, DataConfig
from nanoharmon.world.source import ShapesData

TEXTS = ["a red thing", "ein blaues Ding", "зелёная вещь", "黄色的东西", "یک چیز سفید", "a 🙂 of sorts"]


def picture(i, size=(24, 24)):
    """Pictures that all differ: the i-th color, darker to the right."""
    shade = np.linspace(255, 60, size[0]) / 255
    color = np.array([(i * 37) % 200 + 55, (i * 91) % 200 + 55, (i * 53) % 200 + 55])
    return Image.fromarray(np.broadcast_to(shade[:, None] * color, (size[1], size[0], 3)).astype(np.uint8))


def write_lines(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures with metadata.jsonl; every third is wide; two kinds of labels, or none."""
    root, rows = tmp_path / "photos", []
    root.mkdir()
    for i in range(12):
        picture(i, (40, 24) if i % 3 == 0 else (24, 24)).save(root / f"{i}.png")
        label = {"label": "ab"[i % 2]} if i > 3 else {}
        rows.append({"file_name": f"{i}.png", "text": f"{TEXTS[i % 6]} {i}", **label})
    write_lines(root / "metadata.jsonl", rows)
    return root


def imported(name, cache, images="", size=16, **options):
    import_source(str(name), str(images), cache, size, 3, **options)
    return FolderData(cache / folder_name(str(name)))


def batches(sources, *mix, **model):
    """Batches whose latents tell the row of the picture they are of; rows of the second source from 1000."""
    config = Config.preset("pico")
    config.data = DataConfig(scenes=50, board=2, mix=mix or tuple(f"{s.name}:1" for s in sources))
    for name, value in model.items():
        setattr(config.model.llm, name, value)
    texts = [text for s in sources if s.name != "shapes" for text in s.corpus()]
    for k, source in enumerate(sources):
        source.latents[16] = np.zeros((source.rows, 4, 4), np.float16)
        source.latents[16][:, 0, 0] = np.arange(source.rows) + 1000 * k
    return make_batches(config, sources, Tokenizer.train(texts, 384), "cpu")


# --- one decoder ------------------------------------------------------------------------------------------------------

def save_png(path, image):
    image.save(path)


def sideways(path):
    image = Image.new("RGB", (20, 10), (200, 30, 30))
    image.paste((30, 30, 200), (0, 0, 10, 10))                        # blue on the left: on top, when upright
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)


def see_through(path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path)


def palette(path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(path, transparency=0)


def animation(path):
    first, second = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    first.save(path, save_all=True, append_images=[second], lossless=True)


def deep(path):
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(path)     # 0x8080 of 0xffff


def inks(path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)


def grey_alpha(path):
    Image.new("LA", (8, 8), (0, 128)).save(path)


@pytest.mark.parametrize("make, name, size, color", [
    (sideways, "a.jpg", (10, 20), (30, 30, 200)), (see_through, "a.png", (8, 8), (255, 255, 255)),
    (palette, "a.gif", (8, 8), (10, 200, 30)), (palette, "a.png", (8, 8), (10, 200, 30)),
    (animation, "a.gif", (8, 8), (250, 0, 0)), (animation, "a.webp", (8, 8), (250, 0, 0)),
    (deep, "a.png", (8, 8), (128, 128, 128)), (inks, "a.jpg", (8, 8), (255, 0, 0)),
    (grey_alpha, "a.png", (8, 8), (127, 127, 127)), (see_through, "a.webp", (8, 8), (255, 255, 255))])
def test_pictures_of_all_kinds(tmp_path, make, name, size, color):
    make(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.mode == "RGB" and image.size == size
    np.testing.assert_allclose(image.getpixel((4, 4)), color, atol=6)


@pytest.mark.parametrize("size, words", [((50000, 50000), "too many pixels"), ((9000, 9000), "limit of 64 million"),
                                         ((20000, 1), "12,000 along a side")])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, size, words):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=words):
        read_image(tmp_path / "a.png")


# --- what files say ---------------------------------------------------------------------------------------------------

def test_bad_lines_are_named_and_good_ones_kept(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "circle.png").symlink_to(root / "circle.png")
    picture(1).save(root / "a.png")
    bad = ['{"file_name": "a.png", "text"', "[1]", {"text": "no name"}, {"file_name": 5},
           {"file_name": "a.png", "text": 5}, *({"file_name": "a.png", "label": label} for label in (True, -1, 1.5)),
           {"file_name": "../secret.png", "text": "x"}, {"file_name": "../../etc/passwd"}, {"file_name": "/etc/passwd"},
           {"file_name": str(root / "a.png")}, {"file_name": "link.png"}, {"file_name": "a\0.png"},
           {"file_name": "a.png", "text": "\ud800"}, '{"a":' * 100000]
    good = [{"file_name": "a.png", "text": " hi "}, {"file_name": "./a.png", "label": 3},
            {"file_name": "a.png", "text": ""}]
    write_lines(root / "metadata.jsonl", [*bad, *good, ""])
    entries, problems = read_entries(str(root))
    assert [(e.path.name, e.caption, e.label) for e in entries] == [
        ("a.png", "hi", None), ("a.png", None, 3), ("a.png", None, None)]
    loop = "circle.png" in "".join(problems)
    assert len(problems) == len(bad) + loop and all(f"line {i}: " in p for i, p in enumerate(problems, 1))
    assert [i for i, p in enumerate(problems) if "outside of the folder" in p] == [8, 9, 10, 11, 12]


def test_pairs_also_in_subfolders(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("secret")
    for name in "sub/b.JPG", "a.png", "no.webp", "out.png", "bytes.png", ".hidden.png":
        picture(1).save(tmp_path / "in" / name)
    (tmp_path / "in" / "a.txt").write_text("\ufeffa text\n", encoding="utf-8")
    (tmp_path / "in" / "sub" / "b.txt").write_text("ein Bild", encoding="utf-8")
    (tmp_path / "in" / "out.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "in" / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    entries, problems = read_entries(str(tmp_path / "in"))
    assert [(e.path.name, e.caption) for e in entries] == [
        ("a.png", "a text"), ("no.webp", None), ("b.JPG", "ein Bild")]
    assert len(problems) == 2 and "bytes.png" in problems[0] and "outside of the folder" in problems[1]


def talk(*texts, **more):
    return {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)], **more}


def test_llava_conversations(tmp_path):
    rows = [talk("<image>\nWhat is it?", "A cat.", "Where?", "Here.", image="a.png"),
            talk("Describe it.\n<image>", "A dog.", image="a.png"), talk("Hello", "Hi", "one more"),
            talk("<image>\nx", "y"), talk("<image>", "y", image="a.png"), talk("x", "<image> y", image="a.png"),
            talk("<image><image> x", "y", image="a.png"), talk("x", "", image="a.png"), talk("x", image="a.png"),
            talk("x", "y", image="../a.png"), talk("x", "y", image=["a.png"]), {"image": "a.png"}, 5,
            {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "y"}]},
            {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "y"}]}]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    entries, problems = read_entries(str(tmp_path / "chat.json"), str(tmp_path))
    assert [(e.path and e.path.name, e.turns) for e in entries] == [
        ("a.png", [("user", "What is it?"), ("assistant", "A cat."), ("user", "Where?"), ("assistant", "Here.")]),
        ("a.png", [("user", "Describe it."), ("assistant", "A dog.")]),
        (None, [("user", "Hello"), ("assistant", "Hi")])]
    assert [int(p.split("entry ")[1].split(":")[0]) for p in problems] == list(range(3, 15))


# --- into the cache ---------------------------------------------------------------------------------------------------

def test_squares_to_read_are_padded_and_to_draw_are_crops(photos, tmp_path):
    source = imported(photos, tmp_path / "cache")
    assert source.rows == 8 + 4 * 4 and len(source.items) == 8 and len(source.held) == 4
    by_text = {item["caption"]: item for item in source.items + source.held}
    wide, square = by_text[TEXTS[3] + " 3"], by_text[TEXTS[4] + " 4"]
    assert (wide["views"], square["views"]) == (4, 1)
    padded = pad_square(picture(3, (40, 24))).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(source.pixels[wide["row"]], padded)
    crops = source.pixels[wide["row"] + 1:wide["row"] + 4].astype(int)
    left = crops[:, 8, :, 0].mean(1)
    assert (np.diff(left) < 0).all() and (crops != 127).any()         # from left to right, where it is darker
    assert {folder.crop(wide, random.Random(i)) for i in range(40)} == set(range(wide["row"] + 1, wide["row"] + 4))
    assert folder.crop(square, random.Random(0)) == square["row"]
    again = imported(photos, tmp_path / "other")
    assert np.array_equal(again.pixels, source.pixels) and again.content == source.content


def test_pictures_come_in_any_size(photos, tmp_path):
    source = imported(photos, tmp_path / "cache")
    small = source.pictures([0, 1], 8)
    assert small.shape == (2, 8, 8, 3) and small.dtype == np.uint8
    assert np.array_equal(small[1], Image.fromarray(source.pixels[1]).resize((8, 8), Image.Resampling.BICUBIC))


def test_what_is_held_out_is_never_trained_on(photos, tmp_path):
    write_lines(photos / "metadata.jsonl", [*(photos / "metadata.jsonl").read_text().splitlines(),
                                            {"file_name": "0.png", "text": "the same picture again"}])
    source = imported(photos, tmp_path / "cache")
    held = {row for item in source.held for row in range(item["row"], item["row"] + item["views"])}
    assert len(held) >= 4 and any(item["caption"] == "the same picture again" for item in source.held)
    rng, seen = random.Random(0), set()
    for _ in range(200):
        seen |= {source.class_item(rng)[0], source.generation_item(rng)[0], source.understanding_item(rng)[0]}
    assert seen.isdisjoint(held) and len(seen) == source.rows - len(held)
    texts = {item["caption"] for item in source.held}
    assert texts.isdisjoint(source.corpus()) and texts.isdisjoint(t for _ in range(200) for _, t in source.text(rng)[0])


def test_a_few_broken_files_are_named_and_left_out(photos, tmp_path):
    rows = (photos / "metadata.jsonl").read_text().splitlines() * 4                # 48 entries
    cut = (photos / "0.png").read_bytes()
    (photos / "cut.png").write_bytes(cut[:len(cut) // 2])
    write_lines(photos / "metadata.jsonl", [*rows, {"file_name": "cut.png", "text": "x"}, "{"])
    found = import_source(str(photos), "", tmp_path / "cache", 16, 3)
    assert "50 entries, 12 pictures" in found and "2 broken" in found
    assert "cut.png: damaged or truncated" in found and "line 50: " in found
    write_lines(photos / "metadata.jsonl", [*rows, {"file_name": "cut.png"}, "{", {"file_name": "gone.png"}])
    with pytest.raises(ValueError, match=r"3 of 51 entries are broken.*5%.*line 50.*(cut|gone).png.*--data"):
        import_source(str(photos), "", tmp_path / "new", 16, 3)
    assert not list((tmp_path / "new").iterdir())


def test_a_changed_folder_is_read_again_unless_a_run_has_begun_with_it(photos, tmp_path, monkeypatch):
    old = imported(photos, tmp_path / "cache").content
    picture(77).save(photos / "1.png")
    assert "goes on with what it read then" in import_source(str(photos), "", tmp_path / "cache", 16, 3, frozen=True)
    assert FolderData(tmp_path / "cache" / folder_name(str(photos))).content == old
    new = imported(photos, tmp_path / "cache")
    assert new.content != old
    monkeypatch.setattr(folder, "views_of", lambda *_: pytest.fail("decoded again"))
    os.utime(photos / "2.png")                                        # a date is no content
    assert import_source(str(photos), "", tmp_path / "cache", 16, 3) == ""
    assert imported(photos, tmp_path / "cache").content == new.content


# --- batches ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def chat(photos, tmp_path):
    """Conversations about the pictures: a long one, short ones, one of text only."""
    rows = [talk("<image>\nwhat?", f"thing {i}", image=f"{i}.png") for i in range(11)]
    rows += [talk(*(t for k in range(40) for t in (f"question {k}", f"reply {k}")), image="11.png")] * 5
    rows += [talk("no picture", "none at all")] * 5
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    return imported(tmp_path / "chat.json", tmp_path / "cache", photos)


def flat(parts):
    return [t for part in parts for t in (part if isinstance(part, tuple) else [part])]


def test_a_mixed_batch_is_a_function_of_its_seed_and_has_its_shares(photos, chat, tmp_path):
    own = imported(photos, tmp_path / "cache")
    mixed = batches([ShapesData(DataConfig(scenes=50, board=2)), own], "shapes:1", f"{own.name}:3")

    def batch(seed):
        rng = random.Random(seed)
        return flat([mixed.images(rng, 6, 16), mixed.class_pictures(rng, 6, 16), *mixed.texts(rng, 6),
                     *mixed.generation(rng, 6, 16, 0.5), *mixed.understanding(rng, 6, 16)])
    a, again, other = batch("0/1"), batch("0/1"), batch("0/2")
    assert all(torch.equal(x, y) for x, y in zip(a, again, strict=True))
    assert not all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, other))
    for found in (mixed.class_pictures(random.Random(0), 400, 16)[0],
                  torch.cat([p[0] for p in mixed.generation(random.Random(0), 400, 16, 0)]),
                  torch.cat([p[0] for p in mixed.understanding(random.Random(0), 400, 16)])):
        assert 0.68 < (found[:, 0, 0] >= 1000).float().mean() < 0.82


def test_classes_are_numbered_on_and_missing_ones_are_none(photos, tmp_path):
    own = imported(photos, tmp_path / "cache")
    assert own.classes == 2
    wanted = {row: item["class"] for item in own.items for row in range(item["row"], item["row"] + item["views"])}
    tokens, labels = batches([own]).class_pictures(random.Random(0), 60, 16)
    assert [{-1: None}.get(label, label) for label in labels.tolist()] == [wanted[int(t[0, 0])] for t in tokens]
    assert set(labels.tolist()) == {-1, 0, 1}
    shapes = ShapesData(DataConfig(scenes=50, board=2))
    labels = batches([shapes, own]).class_pictures(random.Random(0), 200, 16)[1].tolist()
    assert {label for label in labels if label >= 140} == {140, 141} and any(0 <= label < 140 for label in labels)


def test_own_drawings_have_their_own_captions_in_any_language(photos, tmp_path):
    own = imported(photos, tmp_path / "cache")
    made, wanted = batches([own]), {row: item["caption"] for item in own.items
                                    for row in range(item["row"], item["row"] + item["views"])}
    for tokens, ids, is_real in made.generation(random.Random(0), 40, 16, 0.0):
        for latent, row, real in zip(tokens, ids, is_real):
            assert f"Generate an image: {wanted[int(latent[0, 0])]}" in made.tokenizer.decode(row[real].tolist())


def test_readings_cut_long_conversations_at_a_turn_and_may_have_no_picture(chat):
    made, kinds = batches([chat], max_position_embeddings=200), set()
    assert not made.notes()
    for tokens, ids, labels, is_real, index in made.understanding(random.Random(1), 60, 16):
        has_picture = (ids == IMAGE).any(1)
        assert len(tokens) == has_picture.sum() and set((ids == IMAGE).sum(1).tolist()) <= {0, 4 + 2}
        assert is_real.sum(1).max() <= 200 - 16 + 4                   # the largest size of pico has 16 tokens
        for row, label in zip(ids, labels):
            said = made.tokenizer.decode(label[label != IGNORE].tolist())
            text = made.tokenizer.decode(row.tolist())
            if "question" in text:
                n = said.count("reply")
                assert 1 < n < 40 and said == "".join(f"reply {k}" for k in range(n)) and f"question {n}" not in text
            else:
                assert ("thing" in said) == (IMAGE in row.tolist()) and "what?" not in said and "no picture" not in said
            kinds.add(said.split()[0])
    assert kinds == {"reply", "thing", "none"}


def test_texts_too_long_for_the_context_are_left_out_and_counted(photos, tmp_path):
    write_lines(photos / "metadata.jsonl", [*(photos / "metadata.jsonl").read_text().splitlines(),
                                            {"file_name": "1.png", "text": "so long " * 300}])
    own = imported(photos, tmp_path / "cache")
    made = batches([own])
    assert "1 texts are not used" in made.notes()[0] and "--llm.max_position_embeddings" in made.notes()[0]
    assert max(p[1].shape[1] for p in made.generation(random.Random(0), 100, 16, 0)) < 100


def test_own_texts_are_learned_whole_and_have_no_pictures(photos, tmp_path):
    for ids, labels, is_real, _ in batches([imported(photos, tmp_path / "cache")]).texts(random.Random(0), 20):
        assert (labels[is_real] == ids[is_real]).all() and (labels[~is_real] == IGNORE).all() and (ids >= 0).all()


def test_conversations_alone_are_drawn_without_a_prompt(chat):
    made = batches([chat])
    nothing = made.tokenizer.drawing(None)
    assert all(row[real].tolist() == nothing for _, ids, is_real in made.generation(random.Random(0), 8, 16, 0.0)
               for row, real in zip(ids, is_real))


def test_texts_without_any_picture_join_a_mix(tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps([talk("no picture", f"none {i}") for i in range(9)]))
    texts = imported(tmp_path / "chat.json", tmp_path / "cache", tmp_path)
    mixed = batches([ShapesData(DataConfig(scenes=50, board=2)), texts])
    new_cache(tmp_path / "latents.npy", texts.rows, 4, 4)
    encode_share(Harmon(Config.preset("pico").model).vae, texts, 16, tmp_path / "latents.npy", 0, 1)
    texts.latents[16] = np.load(tmp_path / "latents.npy", mmap_mode="r")
    assert texts.rows == 0 and not texts.held and len(mixed.images(random.Random(0), 9, 16)) == 9
    tokens, ids = zip(*((tokens, ids) for tokens, ids, *_ in mixed.understanding(random.Random(0), 40, 16)))
    assert 8 < sum(map(len, tokens)) < 32 and sum(map(len, ids)) == 40


def test_a_batch_without_pictures_has_a_loss_and_gradients_everywhere(chat):
    made, model = batches([chat]), Harmon(Config.preset("pico").model)
    chat.with_turns = [item for item in chat.with_turns if item["row"] is None]
    loss = sum(model.understanding_loss(*batch, (2, 2)) for batch in made.understanding(random.Random(0), 4, 16))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None and not p.grad.any() for p in model.proj_in.parameters())


def test_no_class_is_the_null_class():
    model = Harmon(Config.preset("pico").model).mar.train()
    model.config.label_drop_prob = 0.0
    for p in model.diffloss.parameters():                             # its last layer begins with zeros
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))

    def loss(labels, tokens=torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))):
        return model.class_loss(tokens, torch.tensor(labels), *(torch.Generator().manual_seed(1) for _ in "ab"))
    none, first = loss([-1] * 4), loss([0] * 4)
    with torch.no_grad():
        model.class_emb.weight[0] = model.fake_latent[0]
    assert none != first and torch.equal(loss([0] * 4), none)


# --- the command lines ------------------------------------------------------------------------------------------------

def failing(main, argv, capsys):
    with pytest.raises(SystemExit) as e:
        cli.run_main(lambda: main([str(a) for a in argv]))
    err = capsys.readouterr().err.splitlines()
    assert e.value.code == 2 and err[-1].startswith("error: ")
    return err[-1]


@pytest.mark.parametrize("flags, words", [
    (["--data", "nowhere"], ["nowhere", "folder", "--data"]),
    (["--data", "empty"], ["empty", "metadata.jsonl", "--data"]),
    (["--mix", "shapes:1,nowhere:2"], ["nowhere", "--mix"]), (["--mix", "shapes:0"], ["shapes:0", "--mix"]),
    (["--llava", "chat.json"], ["chat.json", "--images"]),
    (["--llava", "bad.json", "--images", "photos"], ["bad.json", "JSON"]),
    (["--data", "mute"], ["mute", "without a text", "a.txt"]), (["--data", "few"], ["few", "at least 8"]),
    (["--data", "labels", "--stage", "vae", "--stage", "mar"], ["401 classes", "--mar.class_num 401"]),
    (["--data", "labels", "--mar.class_num=999"], ["no texts", "stage llm", "--stage vae --stage mar"]),
    (["--data", "photos", "--llm.max_position_embeddings=10"], ["--llm.max_position_embeddings"])])
def test_mistakes_are_named_and_nothing_is_written(photos, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    for name in "empty", "mute", "few", "labels":
        (tmp_path / name).mkdir()
    picture(1).save("mute/a.png")
    picture(1).save("few/a.png")
    (tmp_path / "few/a.txt").write_text("text")
    (tmp_path / "chat.json").write_text(json.dumps([talk("x", "y")]))
    (tmp_path / "bad.json").write_text("{")
    for i in range(9):
        picture(i).save(f"labels/{i}.png")
    write_lines(tmp_path / "labels" / "metadata.jsonl", [{"file_name": f"{i}.png", "label": 50 * i} for i in range(9)])
    err = failing(train.main, ["--preset", "pico", "--procs", "1", "--out", "out", *flags], capsys)
    assert all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


def test_a_folder_is_described(photos, tmp_path, capsys):
    (photos / "3.png").write_bytes(b"nothing")
    data.main([str(photos), "--out", str(tmp_path / "sheet.png")])
    out = capsys.readouterr().out
    assert "12 entries, 11 pictures; 1 entries broken, 8.3%" in out and "3.png: not a picture" in out
    assert "24x24 to 40x24" in out and "8 square" in out and "labels: 2" in out and "texts: 11" in out
    assert Image.open(tmp_path / "sheet.png").width == 5 * 196


def test_a_whole_run_on_own_pictures_outlives_their_loss(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(train.evaluate, "quick", lambda *_, **__: pytest.fail("there are no shapes"))
    out, threads = tmp_path / "out", torch.get_num_threads()
    flags = ["--preset", "pico", "--procs", "1", "--data", str(photos), "--out", str(out), "--sample-every", "0",
             *(f"--stage_{s}.steps=1" for s in train.STAGES)]
    try:
        train.main([*flags, "--stage", "vae", "--stage", "llm", "--stage", "mar", "--stage", "1"])
        (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])
        (photos / "2.png").unlink()
        latents = {path.name: path.read_bytes() for path in (out / "cache").glob("latents_*")}
        train.main(flags)
        assert "goes on with what it read then" in capsys.readouterr().out
    finally:
        torch.set_num_threads(threads)
    pipe, results = Pipeline.load(out / "final"), json.loads((out / "results.json").read_text())
    assert not {"layout", "board"} & set(pipe.meta) and results[f"{photos}/held_out_pictures"] == 4
    assert 0 < results[f"{photos}/vae_psnr"] < 60
    assert Image.open(out / "samples" / "final.png").width == 4 * 196
    answers = [json.loads(line)["answers"] for line in open(out / "log.jsonl") if "answers" in line]
    assert [len(a) for a in answers] == [0, 1, 0, 4, 4, 4]
    assert latents == {name: (out / "cache" / name).read_bytes() for name in latents}       # kept, not made anew
    with torch.no_grad():
        changed = Harmon(pipe.model.config).vae                       # the VAE is trained anew: its latents are, too
    source = FolderData(out / "cache" / folder_name(str(photos)))
    assert not latents_path(out / "cache", source, 16, changed).exists()
