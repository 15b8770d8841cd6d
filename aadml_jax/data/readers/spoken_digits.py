"""A short summary of a recording: its log-mel spectrogram, averaged over parts of its length."""

import io
import wave

import numpy as np

from aadml_jax.data.readers.file_kinds import EMPTY, START_BYTES, ZEROS, kind_of
from aadml_jax.errors import UserError, one_line

SAMPLE_RATE = 8000
NUM_BANDS = 16
NUM_SEGMENTS = 8

_WINDOW_SECONDS = 0.025
_HOP_SECONDS = 0.010
_FFT_SIZE = 256
_LOWEST_HERTZ, _HIGHEST_HERTZ = 125.0, 3800.0
_LOG_OFFSET = 0.01
# A minute: recordings of single digits take a second or two.
_LONGEST_SAMPLES = 60 * SAMPLE_RATE
_CONVERT = f"convert it to WAV of 1 channel, 16 bits and {SAMPLE_RATE} Hz"


def read_recording(content: bytes, *, what: str) -> np.ndarray:
    """The samples of a WAV file of one channel, 16 bits and 8,000 Hz, float64 [N] in −1 … 1.

    Args:
      content: Of the file.
      what: The file's name in messages.

    Raises:
      UserError: The file is damaged, in another form, empty, or longer than a minute.
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            num_samples = file.getnframes()
            samples = file.readframes(min(num_samples, _LONGEST_SAMPLES + 1))
    except Exception as error:  # of several kinds, by where the file is damaged
        kind = kind_of(content[:START_BYTES])
        remedy = "fetch it again"
        if kind in (None, EMPTY, ZEROS):
            reason = one_line(error)
        elif kind.name.startswith("a WAV"):
            reason = one_line(error)
            if "format" in reason:  # of the samples, such as numbers with a point
                remedy = _CONVERT
        else:
            reason, remedy = f"it is {kind.name}", kind.remedy or _CONVERT
        raise UserError(f"{what} is no sound WAV file ({reason}); {remedy}") from error
    if form != (1, 16, SAMPLE_RATE):
        raise UserError(
            f"{what} has {form[0]} channels of {form[1]} bits at {form[2]} Hz; 1 channel of 16 "
            f"bits at {SAMPLE_RATE} Hz is needed, convert it"
        )
    if len(samples) != 2 * num_samples or not num_samples:
        raise UserError(
            f"{what} announces {num_samples} samples and holds {len(samples) // 2}; fetch it again"
        )
    if num_samples > _LONGEST_SAMPLES:
        raise UserError(f"{what} holds {num_samples} samples; a minute at most is expected")
    return np.frombuffer(samples, "<i2") / 2**15


def log_mel_summary(samples: np.ndarray) -> np.ndarray:
    """The features of a recording: 16 mel bands in each of 8 parts of its length.

    The magnitudes of 256-point Fourier transforms of windows of 25 ms (periodic Hann), 10 ms apart,
    are summed in 16 triangular bands that are evenly spaced from 125 to 3,800 Hz on the mel scale
    m = 1127 ln(1 + f / 700). ln(band + 0.01) is averaged over 8 successive parts of the windows, as
    even as can be, the longer ones first.

    Args:
      samples: At 8,000 Hz, real [N]; a recording of fewer than 8 windows is followed by silence.

    Returns:
      float32 [128]: the bands of the first part, those of the second, and so on.
    """
    window_size, hop = round(_WINDOW_SECONDS * SAMPLE_RATE), round(_HOP_SECONDS * SAMPLE_RATE)
    shortest = window_size + (NUM_SEGMENTS - 1) * hop
    samples = np.pad(samples, (0, max(0, shortest - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(samples, window_size)[::hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    magnitudes = np.abs(np.fft.rfft(windows * hann, _FFT_SIZE))
    log_mel = np.log(magnitudes @ _mel_bands() + _LOG_OFFSET)
    parts = np.array_split(log_mel, NUM_SEGMENTS)
    return np.concatenate([part.mean(axis=0) for part in parts]).astype(np.float32)


def _mel_bands() -> np.ndarray:
    """Weight of each frequency in each band, [129, 16]: triangles on the mel scale."""

    def mel(hertz: np.ndarray | float) -> np.ndarray:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    frequencies = mel(np.fft.rfftfreq(_FFT_SIZE, 1 / SAMPLE_RATE))[:, None]
    corners = np.linspace(mel(_LOWEST_HERTZ), mel(_HIGHEST_HERTZ), NUM_BANDS + 2)
    lower, center, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies - lower) / (center - lower)
    falling = (upper - frequencies) / (upper - center)
    return np.maximum(0, np.minimum(rising, falling))
