"""Small sound files in every format, written without the code that reads them."""

import csv
import io
import struct
import zipfile

import numpy as np

TRAIN_IDS, TEST_IDS = ("a", "b", "c", "d"), ("e", "f")
IDS = TRAIN_IDS + TEST_IDS
CLIP_LABELS = (0, 1, 0, 1, 1, 0)
AUDIO_DIM, VISUAL_DIM = 3, 5


def features(number):
    """Audio and visual vector of a clip."""
    random = np.random.default_rng(number)
    return (
        random.normal(size=AUDIO_DIM).astype(np.float32),
        random.normal(size=VISUAL_DIM).astype(np.float32),
    )


def crc32c(content):
    """The checksum of Castagnoli's polynomial, reflected, bit by bit."""
    register = 0xFFFFFFFF
    for byte in content:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked_crc(content):
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def record(content):
    """A record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", masked_crc(part)) for part in (length, content)]
    return length + sums[0] + content + sums[1]


def varint(number):
    number %= 2**64
    octets = []
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def message(*fields):
    """A protobuf message of length-delimited fields, (number, content) each."""
    return b"".join(
        varint(number << 3 | 2) + varint(len(content)) + content for number, content in fields
    )


def bytes_feature(*values):
    return message((1, message(*((1, value) for value in values))))


def float_feature(*values):
    return message((2, message((1, struct.pack(f"<{len(values)}f", *values)))))


def int64_feature(*values):
    return message((3, message((1, b"".join(map(varint, values))))))


def example(named):
    """An Example protobuf; `named` holds features as the functions above write them."""
    return message(
        (1, message(*((1, message((1, key.encode()), (2, value))) for key, value in named.items())))
    )


def video(number, **changes):
    """The Example of a clip as YouTube-8M has it; a change to None leaves a feature out."""
    audio, visual = features(number)
    named = {
        "id": bytes_feature(IDS[number].encode()),
        "labels": int64_feature(CLIP_LABELS[number], 2),
        "mean_audio": float_feature(*audio),
        "mean_rgb": float_feature(*visual),
        **changes,
    }
    return example({key: value for key, value in named.items() if value is not None})


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_of(header, data=b"", version=1):
    """A .npy file with any header."""
    length_form = {1: "<H", 2: "<I", 3: "<I"}[version]
    header = header.encode() + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack(length_form, len(header)) + header + data
    )


def npz(members, compression=zipfile.ZIP_STORED):
    """A .npz file; members are arrays or the bytes of .npy files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for key, value in members.items():
            archive.writestr(f"{key}.npy", value if isinstance(value, bytes) else npy(value))
    return file.getvalue()


def clip_npz(number):
    return npz(dict(zip(("audio", "visual"), features(number), strict=True)))


def clip_list(rows=None, header=("clip_id", "label", "split")):
    """The text of a list of clips."""
    if rows is None:
        splits = ["train"] * len(TRAIN_IDS) + ["test"] * len(TEST_IDS)
        rows = zip(IDS, CLIP_LABELS, splits, strict=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def wav(samples, rate=8000, channels=1, bits=16):
    """A WAV file of whole numbers."""
    data = np.asarray(samples).astype(f"<i{bits // 8}").tobytes()
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * step, step, bits)
    body = b"WAVE" + b"fmt " + struct.pack("<I", 16) + form
    body += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def idx(array):
    """An IDX file of unsigned bytes."""
    array = np.asarray(array, np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def recordings(digits=range(10), speakers=("ann", "bob"), numbers=(0, 5)):
    """Names and contents of WAV files: tones of a pitch of their own."""
    files = {}
    for digit in digits:
        for place, speaker in enumerate(speakers):
            for number in numbers:
                pitch = 200 + 150 * digit + 31 * place + 7 * number
                wave = 12000 * np.sin(2 * np.pi * pitch * np.arange(1600) / 8000)
                files[f"{digit}_{speaker}_{number}.wav"] = wav(wave)
    return files


def pictures(per_digit=5):
    """Images, no two alike, and their digits."""
    digits = np.random.default_rng(0).permutation(np.repeat(np.arange(10), per_digit))
    images = np.random.default_rng(1).integers(0, 256, (len(digits), 4, 3))
    return images.astype(np.uint8), digits.astype(np.uint8)
