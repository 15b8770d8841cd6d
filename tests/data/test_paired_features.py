import numpy as np
import pytest

from aadml_jax.data import (
    PairedFeatures,
    RetrievalDataset,
    StoredFeatures,
    fit_standardization,
    standardize,
    with_class_balanced_rows,
)
from aadml_jax.data.standardization import measure_standardization
from aadml_jax.errors import UserError


def random_features(seed, rows, *, audio_dim=3, visual_dim=5, num_classes=4, name="rows"):
    random = np.random.default_rng(seed)
    return PairedFeatures(
        random.normal(size=(rows, audio_dim)),
        random.normal(size=(rows, visual_dim)),
        random.permutation(np.arange(rows) % num_classes),
        name=name,
    )


def random_dataset(seed=0, **changes):
    arguments = {
        "name": "random",
        "train": random_features(seed, 11, name="train rows"),
        "test": random_features(seed + 1, 7, name="test rows"),
        "num_classes": 4,
        "source": "here",
    }
    return RetrievalDataset(**(arguments | changes))


@pytest.mark.parametrize("feature_dtype", [np.float16, ">f8", np.int16, np.float32])
@pytest.mark.parametrize("label_dtype", [np.uint8, ">i8", np.float64])
def test_real_dtypes_become_native_float32_and_int32(feature_dtype, label_dtype):
    random = np.random.default_rng(0)
    audio = random.integers(-9, 9, (6, 3)).astype(feature_dtype)
    visual = random.integers(-9, 9, (6, 2)).astype(feature_dtype)
    labels = np.array([2, 0, 1, 1, 0, 2], label_dtype)
    rows = PairedFeatures(audio, visual, labels)
    assert (rows.audio.dtype, rows.visual.dtype) == (np.dtype("=f4"), np.dtype("=f4"))
    assert rows.labels.dtype == np.dtype("=i4")
    np.testing.assert_array_equal(rows.audio, audio)
    np.testing.assert_array_equal(rows.visual, visual)
    np.testing.assert_array_equal(rows.labels, labels)
    assert len(rows) == 6


def with_entries(shape, entries, dtype=np.float64):
    array = np.ones(shape, dtype)
    for index, value in entries.items():
        array[index] = value
    return array


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("audio", np.ones(6), ["audio", "(6,)"]),
        ("visual", np.ones((6, 2, 2)), ["visual", "(6, 2, 2)"]),
        ("visual", np.ones((6, 0)), ["visual", "(6, 0)"]),
        ("audio", np.ones((5, 3)), ["audio has 5", "visual has 2", "labels has 6"]),
        ("labels", np.zeros(4, int), ["labels has 4"]),
        ("audio", np.ones((6, 3), complex), ["audio", "complex128"]),
        ("audio", np.array([["a"]] * 6), ["audio", "<U1"]),
        (
            "audio",
            with_entries((6, 3), {(2, 1): np.nan, (2, 2): -np.inf, (5, 0): np.inf}),
            ["audio", "3 NaN or infinite", "2 of 6 rows", "row 2"],
        ),
        (
            "visual",
            with_entries((6, 2), {(3, 1): -1e39, (4, 0): 1e300}),
            ["visual", "range of float32", "2 of 6 rows", "row 3", "1e+39"],
        ),
        ("audio", np.ones((6, 3, 1)), ["audio", "(6, 3, 1)", "features[..., 0]"]),
        ("audio", np.ma.masked_equal(np.eye(6), 1), ["audio", "6 masked values"]),
        ("labels", np.ma.masked_equal([0, 1, 1, 0, 9, 0], 9), ["labels", "1 masked values"]),
        ("labels", np.array([[0], [1], [1], [0], [1], [0]]), ["(6, 1)", "labels[:, 0]"]),
        ("labels", np.array([[3], [1], [2], [0], [1], [0]]), ["(6, 1)", "labels[:, 0]"]),
        ("labels", 2 * np.eye(6) - 1, ["labels", "row 0 holds -1 for class 1"]),
        ("labels", np.eye(6) + 1, ["labels", "row 0 holds 2 for class 0"]),
        ("labels", 255 * np.eye(6, dtype=np.uint8), ["labels", "row 0 holds 255 for class 0"]),
        ("labels", 0.999999 * np.eye(6), ["labels", "row 0 holds 0.999999 for class 0"]),
        ("labels", np.where(np.eye(6), np.nan, 0), ["labels", "row 0 holds nan for class 0"]),
        ("labels", np.full((6, 2), "1"), ["labels", "<U1"]),
        ("labels", np.array([True, False] * 3), ["labels", "dtype bool"]),
        ("labels", np.array(["0", "1"] * 3), ["labels", "<U1"]),
        ("labels", np.array([0, 2**32 + 1, 0, 0, 0, 0]), ["labels", "row 1", "4294967297"]),
        ("labels", np.array([0, 2**63], np.uint64), ["labels", "row 1", str(2**63)]),
        ("labels", np.array([0, 1, -1, 0, -2, 0]), ["labels", "row 2", "-1"]),
        ("labels", np.array([0, 1, 2, 0.5, 0, 0]), ["labels", "row 3", "0.5"]),
        ("labels", np.array([0, np.nan, 2, 0, 0, 0]), ["labels", "row 1", "nan"]),
        ("labels", np.array([0, 0, 0, 0, 2**31, 0]), ["labels", "row 4", str(2**31)]),
        ("labels", np.zeros((6, 1, 1), int), ["labels", "(6, 1, 1)"]),
        ("labels", np.zeros(6, bool), ["labels", "bool"]),
        ("labels", np.zeros(0, int), ["labels", "no rows"]),
    ],
)
def test_damaged_rows_are_named_in_one_line(field, value, words):
    arrays = {"audio": np.ones((6, 3)), "visual": np.ones((6, 2)), "labels": np.zeros(6, int)}
    if field == "audio" and value.shape == (5, 3):
        arrays["visual"] = np.ones((2, 2))
    with pytest.raises(UserError) as raised:
        PairedFeatures(**(arrays | {field: value}), name="the clips")
    message = str(raised.value)
    assert "\n" not in message
    for word in ["the clips", *words]:
        assert word in message


def test_bad_rows_are_counted_over_blocks(monkeypatch):
    monkeypatch.setattr("aadml_jax.data.paired_features._BLOCK_ROWS", 4)
    audio = np.ones((11, 3))
    audio[5, 1] = audio[9, 0] = audio[10, 2] = np.nan
    with pytest.raises(UserError, match=r"3 NaN .* 3 of 11 rows, first in row 5"):
        PairedFeatures(audio, np.ones((11, 2)), np.zeros(11, int))


def test_take_selects_by_index_and_by_mask():
    rows = random_features(3, 9)
    chosen = rows.take(np.array([7, 2, 2]))
    np.testing.assert_array_equal(chosen.audio, [rows.audio[7], rows.audio[2], rows.audio[2]])
    np.testing.assert_array_equal(chosen.visual, [rows.visual[7], rows.visual[2], rows.visual[2]])
    np.testing.assert_array_equal(chosen.labels, rows.labels[[7, 2, 2]])
    assert chosen.name == rows.name
    masked = rows.take(rows.labels == 1)
    np.testing.assert_array_equal(masked.visual, rows.visual[rows.labels == 1])
    with pytest.raises(IndexError):
        rows.take(np.array([9]))
    with pytest.raises(UserError, match="empty"):
        rows.take(np.array([], int))


def test_dataset_knows_its_dimensions():
    dataset = random_dataset()
    assert (dataset.audio_dim, dataset.visual_dim) == (3, 5)
    assert dataset.features_in_words() == "3 audio and 5 visual features"
    averaged = random_dataset(averaged_over=("", "10 time steps"))
    words = "3 audio and 5 visual features (visual averaged over 10 time steps)"
    assert averaged.features_in_words() == words


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([[0], [1], [1]]), ["stored rows", "(3, 1)", "labels[:, 0]"]),
        (np.array([0.0, 1.5, 1.0]), ["stored rows", "row 1 holds 1.5"]),
        (np.array([0, 2**32 + 1, 1]), ["stored rows", "row 1 holds 4294967297"]),
        (np.eye(3) * 255, ["stored rows", "row 0 holds 255"]),
        (np.array(["a", "b", "a"]), ["stored rows", "<U1"]),
        (np.array([0, 1]), ["stored rows", "labels has 2, rows has 3"]),
    ],
)
def test_labels_of_stored_features_are_checked_alike(labels, words):
    with pytest.raises(UserError) as raised:
        StoredFeatures(labels, 3, 5, lambda rows: None, np.arange(3), "stored rows")
    for word in words:
        assert word in str(raised.value)


def test_labels_of_stored_features_are_converted_alike():
    for labels, expected in (
        (np.array([2, 0, 1], np.int64), np.array([2, 0, 1], np.int32)),
        (np.eye(3, dtype=np.uint8), np.eye(3, dtype=bool)),
    ):
        stored = StoredFeatures(labels, 3, 5, lambda rows: None, np.arange(3), "stored rows")
        assert stored.labels.dtype == expected.dtype
        np.testing.assert_array_equal(stored.labels, expected)


def test_stored_clips_need_a_class_each():
    labels = np.array([[True, False], [False, False], [False, True]])
    rows = StoredFeatures(labels, 3, 5, lambda rows: None, np.arange(3), "stored rows")
    with pytest.raises(UserError, match="stored rows: 1 of 3 rows have no class, first row 1"):
        RetrievalDataset("made", rows, rows, 2, "here")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"test": random_features(1, 7, visual_dim=6, name="test rows")},
            ["visual", "5 columns in train rows", "6 in test rows"],
        ),
        ({"num_classes": 3}, ["train rows", "class 3", "from 0 to 2"]),
        (
            {"test": random_features(1, 7, num_classes=5, name="test rows")},
            ["test rows", "class 4", "from 0 to 3"],
        ),
        ({"num_classes": 6}, ["train rows", "class 4, 5", "6 classes"]),
        ({"num_classes": 10**9}, ["class 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, … (999999996 in all)"]),
    ],
)
def test_inconsistent_dataset_is_named_in_one_line(changes, words):
    with pytest.raises(UserError) as raised:
        random_dataset(**changes)
    message = str(raised.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_posteriors_must_cover_test_rows_and_classes():
    good = np.full((7, 4), 0.25)
    assert random_dataset(test_posteriors=(good, good)).test_posteriors[1] is good
    with pytest.raises(ValueError, match=r"\(7, 4\), got \(4, 7\)"):
        random_dataset(test_posteriors=(good, good.T))
    for wrong in (np.nan, 1.01, -0.01):
        with pytest.raises(ValueError, match="must be probabilities"):
            random_dataset(test_posteriors=(good, np.where(np.arange(4) == 2, wrong, good)))


def test_standardization_matches_float64_loops():
    random = np.random.default_rng(5)
    audio = (1e4 + random.normal(size=(501, 3)) * [0.5, 7.0, 300.0]).astype(np.float32)
    visual = random.gamma(2.0, size=(501, 4)).astype(np.float32)
    visual[:, 2] = 0.1
    train = PairedFeatures(audio, visual, np.zeros(501, int))
    statistics = fit_standardization(train)
    for values, mean, scale in (
        (audio, statistics.audio_mean, statistics.audio_scale),
        (visual, statistics.visual_mean, statistics.visual_scale),
    ):
        assert (mean.dtype, scale.dtype) == (np.float32, np.float32)
        for column in range(values.shape[1]):
            numbers = [float(value) for value in values[:, column]]
            expected_mean = sum(numbers) / 501
            variance = sum((number - expected_mean) ** 2 for number in numbers) / 501
            constant = values is visual and column == 2
            np.testing.assert_allclose(mean[column], expected_mean, rtol=1e-6)
            np.testing.assert_allclose(
                scale[column], 0 if constant else np.sqrt(variance), rtol=1e-6
            )
    result = standardize(train, statistics)
    assert result.audio.dtype == np.float32
    np.testing.assert_allclose(result.audio.mean(axis=0), 0, atol=2e-3)
    np.testing.assert_allclose(result.audio.std(axis=0), 1, rtol=1e-4)
    np.testing.assert_array_equal(result.visual[:, 2], 0)
    np.testing.assert_array_equal(result.labels, train.labels)


def test_standardization_of_another_split_uses_the_training_statistics():
    train, test = random_features(0, 12), random_features(1, 5)
    statistics = fit_standardization(train)
    expected = (test.visual.astype(float) - statistics.visual_mean) / statistics.visual_scale
    expected = np.clip(expected, -5, 5)
    np.testing.assert_allclose(standardize(test, statistics).visual, expected, rtol=1e-5, atol=1e-6)


def test_standardization_of_other_features_is_refused():
    statistics = fit_standardization(random_features(0, 12))
    other = random_features(1, 5, visual_dim=4, name="other rows")
    with pytest.raises(UserError, match=r"visual of other rows has 4 columns.*fitted on 5"):
        standardize(other, statistics)


def test_standardized_overflow_is_an_error_and_not_a_warning():
    train = PairedFeatures([[0.0], [1e-30]], [[0.0], [1.0]], [0, 1])
    test = PairedFeatures([[1e30], [0.0]], [[0.0], [1.0]], [0, 1], name="far rows")
    with pytest.raises(UserError, match="audio of standardised far rows"):
        standardize(test, fit_standardization(train), limit=None)


def test_standardized_values_are_limited():
    # Mean 4 and deviation 2 (audio), mean -1 and deviation 1 (visual).
    train = PairedFeatures([[2.0], [6.0]], [[-2.0], [0.0]], [0, 1])
    test = PairedFeatures([[13.9], [14.1], [-1e30]], [[3.5], [4.5], [-1.0]], [0, 1, 1])
    statistics = fit_standardization(train)
    limited = standardize(test, statistics)
    np.testing.assert_allclose(limited.audio[:, 0], [4.95, 5, -5], rtol=1e-6)
    np.testing.assert_allclose(limited.visual[:, 0], [4.5, 5, 0], rtol=1e-6)
    free = standardize(test, statistics, limit=None)
    np.testing.assert_allclose(free.audio[:, 0], [4.95, 5.05, -5e29], rtol=1e-6)
    np.testing.assert_allclose(free.visual[:, 0], [4.5, 5.5, 0], rtol=1e-6)


def test_features_that_are_nearly_constant_are_left_out():
    random = np.random.default_rng(3)
    audio, visual = random.normal(size=(40, 6)), 1e-3 * random.normal(size=(40, 3))
    audio[:, 1] = 7.0
    audio[:, 2] = 255.0
    audio[5, 2] += 1e-3  # σ = 1e-3 √39 / 40 = 1.6e-4, of 255 less than 1e-5
    audio[:, 3] = 255.0
    audio[5, 3] += 1.0  # σ = 0.16
    audio[:, 4] = 0.0
    audio[5, 4] = 1e-6  # σ = 1.6e-7, of about 1 less than 1e-6
    audio[:, 5] = 1e4 + random.normal(size=40)  # σ = 1, of 1e4 more than 1e-5
    train = PairedFeatures(audio, visual, np.arange(40) % 2)
    measured = measure_standardization(train)
    assert measured.nearly_constant == ((2, 4), ())
    np.testing.assert_array_equal(measured.statistics.audio_scale == 0, [0, 1, 1, 0, 1, 0])
    assert (measured.statistics.visual_scale > 0).all()
    far = PairedFeatures(np.full((4, 6), 128.0), np.zeros((4, 3)), [0, 1, 0, 1])
    standardized = standardize(far, measured.statistics, limit=None)
    np.testing.assert_array_equal(standardized.audio[:, [1, 2, 4]], 0)
    assert (np.abs(standardized.audio[:, [0, 3, 5]]) > 100).all()


def test_rows_that_are_all_alike_are_all_left_out():
    train = PairedFeatures(np.full((4, 3), 0.1), np.zeros((4, 2)), [0, 1, 0, 1])
    measured = measure_standardization(train)
    assert measured.nearly_constant == ((), ())
    np.testing.assert_array_equal(standardize(train, measured.statistics).audio, 0)


def test_subset_of_a_data_set_keeps_rows_labels_and_posteriors_together():
    train = PairedFeatures(np.arange(6.0)[:, None], np.ones((6, 2)), [0, 1, 2, 0, 1, 2])
    test = PairedFeatures(np.arange(5.0)[:, None], np.ones((5, 2)), [2, 2, 0, 1, 0])
    posteriors = np.random.default_rng(0).random((2, 5, 3))
    dataset = RetrievalDataset("d", train, test, 3, "here", tuple(posteriors))
    subset = with_class_balanced_rows(dataset, 4, 3)
    assert subset.train.audio[:, 0].tolist() == [0, 1, 2, 3]
    assert subset.test.audio[:, 0].tolist() == [0, 2, 3]
    assert subset.test.labels.tolist() == [2, 0, 1]
    np.testing.assert_array_equal(subset.test_posteriors, posteriors[:, [0, 2, 3]])
