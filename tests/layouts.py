"""Small data in the layouts that people have: the same names, types and shapes, few pictures.

LAYOUTS maps a name to (data.name of train.py, function that writes it into a folder). Splits hold
PICTURES; every picture has five captions, the first of which names it by its number.
"""

import base64
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import tiny
from PIL import Image
from pyarrow import parquet

PICTURES = {"train": 6, "val": 3, "test": 4}
REGIONS, CHANNELS = 36, 2048
THINGS = ("dog", "cat", "man", "ball", "red house", "small boat")
FILE_SPLITS = {"train": "train", "val": "dev", "test": "testall"}


def captions_of(number):
    thing = THINGS[number % len(THINGS)]
    return [
        f"Picture {number} shows a {thing}.",
        f"A {thing} outside",
        f"There is a {thing}, isn't there?",
        f"The {thing} in the sun",
        f"A photo of one {thing}",
    ]


def tokens_of(caption):
    return caption.lower().strip(".?").split()


def pixels_of(number):
    """Four coloured stripes (32, 40, 3), which JPEG keeps nearly as they are."""
    stripes = np.random.default_rng(number).integers(0, 256, (1, 4, 1, 3), np.uint8)
    return np.broadcast_to(stripes, (32, 4, 10, 3)).reshape(32, 40, 3).copy()


def regions_of(number, count=REGIONS):
    rng = np.random.default_rng(number)
    return np.maximum(rng.standard_normal((count, CHANNELS)), 0).astype(np.float32)


def numbers(split):
    """Numbers of the pictures of a split: 0 to 12 over the three."""
    begin = 0
    for name, count in PICTURES.items():
        if name == split:
            return range(begin, begin + count)
        begin += count
    raise KeyError(split)


def jpeg(number):
    file = io.BytesIO()
    Image.fromarray(pixels_of(number)).save(file, "JPEG")
    return file.getvalue()


def write_picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number))


def karpathy_record(number, split, filename, **more):
    sentences = [
        {"raw": raw, "tokens": tokens_of(raw), "imgid": number, "sentid": 5 * number + i}
        for i, raw in enumerate(captions_of(number))
    ]
    return {
        "filename": filename,
        "imgid": number,
        "split": split,
        "sentids": [s["sentid"] for s in sentences],
        "sentences": sentences,
        **more,
    }


def coco_filename(year, number):
    return f"COCO_{year}_{1000 + number:012d}.jpg"


def coco_records():
    """Records of dataset_coco.json; the last training picture is restval, from val2014."""
    for split in PICTURES:
        for number in numbers(split):
            last = number == numbers("train")[-1]
            year = "train2014" if split == "train" and not last else "val2014"
            yield karpathy_record(
                number,
                "restval" if last else split,
                coco_filename(year, number),
                filepath=year,
                cocoid=1000 + number,
            )


def karpathy_coco(folder):
    records = list(coco_records())
    for record in records:
        write_picture(folder / record["filepath"] / record["filename"], record["imgid"])
    (folder / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))


def flickr_records():
    for split in PICTURES:
        for number in numbers(split):
            yield karpathy_record(number, split, f"{1000092795 + number}.jpg")


def karpathy_flickr30k(folder):
    records = list(flickr_records())
    for record in records:
        write_picture(folder / "flickr30k-images" / record["filename"], record["imgid"])
    content = {"images": records, "dataset": "flickr30k"}
    (folder / "dataset_flickr30k.json").write_text(json.dumps(content))


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def write_caption_lines(folder, split, words=False):
    captions = [caption for number in numbers(split) for caption in captions_of(number)]
    name = FILE_SPLITS[split]
    if words:
        lines = [",".join(tokens_of(caption)) for caption in captions]
        write_lines(folder / f"{name}_precaps_stan.txt", lines)
    else:
        write_lines(folder / f"{name}_caps.txt", captions)


def regions(folder, repeated=False, words=False):
    """SCAN's coco_precomp; `repeated`: a row for each caption, `words`: precaps_stan alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, name in FILE_SPLITS.items():
        each = 5 if repeated else 1
        rows = np.stack([regions_of(number) for number in numbers(split)]).repeat(each, axis=0)
        np.save(folder / f"{name}_ims.npy", rows)
        ids = [1000 + number for number in numbers(split) for _ in range(5)]
        write_lines(folder / f"{name}_ids.txt", ids)
        write_caption_lines(folder, split, words)


def regions_repeated(folder):
    regions(folder, repeated=True)


def regions_words(folder):
    regions(folder, words=True)


def tsv_line(image_id, features):
    boxes = np.ones((len(features), 4), np.float32)
    cells = [image_id, 640, 480, len(features)]
    packed = [base64.b64encode(array.tobytes()).decode() for array in (boxes, features)]
    return "\t".join(map(str, [*cells, *packed])) + "\n"


def butd(folder):
    """Two TSV files of 1 to 8 regions a picture, in another order than the splits."""
    folder.mkdir(parents=True, exist_ok=True)
    records = list(coco_records())
    (folder / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    lines = [
        tsv_line(record["cocoid"], regions_of(record["imgid"], 1 + record["imgid"] % 8))
        for record in reversed(records)
    ]
    name = "karpathy_train_resnet101_faster_rcnn_genome.tsv"
    (folder / f"{name}.0").write_text("".join(lines[:7]))
    (folder / f"{name}.1").write_text("".join(lines[7:]))


def id_mapping(folder):
    precomp = folder / "precomp"
    precomp.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for split, name in FILE_SPLITS.items():
        write_caption_lines(precomp, split)
        write_lines(precomp / f"{name}_ids.txt", [1000 + number for number in numbers(split)])
        for number in numbers(split):
            mapping[str(1000 + number)] = f"train2014/{coco_filename('train2014', number)}"
            write_picture(folder / "images" / mapping[str(1000 + number)], number)
    (folder / "id_mapping.json").write_text(json.dumps(mapping))


def coco_captions(folder):
    annotations = folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    content = {year: {"info": {}, "images": [], "annotations": []} for year in ("train", "val")}
    ids = {"train": [], "restval": [], "dev": [], "test": []}
    for record in coco_records():
        year = record["filepath"].removesuffix("2014")
        image = {"id": record["cocoid"], "file_name": record["filename"]}
        content[year]["images"].append(image)
        write_picture(folder / "images" / record["filepath"] / record["filename"], record["imgid"])
        for sentence in record["sentences"]:
            own = {"image_id": record["cocoid"], "id": 7 * sentence["sentid"] + 3}
            content[year]["annotations"].append(own | {"caption": sentence["raw"]})
            ids[{"val": "dev"}.get(record["split"], record["split"])].append(own["id"])
    for year, values in content.items():
        values["annotations"].reverse()  # COCO's own order is another than that of the ids
        (annotations / f"captions_{year}2014.json").write_text(json.dumps(values))
    for name, values in ids.items():
        np.save(annotations / f"coco_{name}_ids.npy", np.array(values))


def picture_table(split):
    rows = [
        {"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}, "caption": captions_of(n), "n": n}
        for n in numbers(split)
    ]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("caption", pa.list_(pa.string())), ("n", pa.int64())])
    return pa.Table.from_pylist(rows, schema=schema)


def huggingface_saved(folder):
    """What DatasetDict.save_to_disk writes, in two shards a split."""
    names = {"train": "train", "val": "validation", "test": "test"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(names.values())}))
    for split, name in names.items():
        own, table = folder / name, picture_table(split)
        own.mkdir()
        files = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
        for file, part in zip(files, (table[:1], table[1:]), strict=True):
            with pa.OSFile(str(own / file), "wb") as out, pa.ipc.new_stream(out, part.schema) as w:
                w.write_table(part)
        state = {"_data_files": [{"filename": file} for file in files], "_split": name}
        (own / "state.json").write_text(json.dumps(state))
        (own / "dataset_info.json").write_text("{}")


def huggingface_parquet(folder):
    """Parquet shards as they lie on the Hub."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for split, name in {"train": "train", "val": "validation", "test": "test"}.items():
        table = picture_table(split)
        for i, part in enumerate((table[:2], table[2:])):
            file = folder / "data" / f"{name}-{i:05d}-of-00002.parquet"
            parquet.write_table(part, file, row_group_size=2)


def add_member(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def webdataset(folder):
    """Two shards a split; captions as text in one, as JSON in the other; a pickle to pass over."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in PICTURES:
        own = list(numbers(split))
        for shard, part in enumerate((own[:2], own[2:])):
            with tarfile.open(folder / f"flickr-{split}-{shard:06d}.tar", "w") as tar:
                for number in part:
                    key, captions = f"{number:08d}", captions_of(number)
                    add_member(tar, f"{key}.jpg", jpeg(number))
                    add_member(tar, f"{key}.pkl", b"cos\nsystem\n.")
                    if shard:
                        add_member(tar, f"{key}.json", json.dumps({"captions": captions}).encode())
                    else:
                        add_member(tar, f"{key}.txt", "\n".join(captions).encode())


def own_files(folder):
    tiny.write_captions(folder, 13)


LAYOUTS = {
    "karpathy_coco": ("karpathy", karpathy_coco),
    "karpathy_flickr30k": ("karpathy", karpathy_flickr30k),
    "regions": ("regions", regions),
    "regions_repeated": ("regions", regions_repeated),
    "regions_words": ("regions", regions_words),
    "butd": ("butd", butd),
    "id_mapping": ("id_mapping", id_mapping),
    "coco_captions": ("coco_captions", coco_captions),
    "huggingface_saved": ("huggingface", huggingface_saved),
    "huggingface_parquet": ("huggingface", huggingface_parquet),
    "webdataset": ("webdataset", webdataset),
}


def write(name, folder):
    """Write a layout into a new folder -> (data.name, folder)."""
    folder.mkdir(parents=True, exist_ok=True)
    data_name, writer = LAYOUTS[name]
    writer(folder)
    return data_name, folder
