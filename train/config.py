"""What a training run is, as frozen dataclasses; `settings` reads them from TOML.

Durations (warm-up, margin, steps of a schedule, length of the run) are in `run.unit`: optimizer steps, or epochs of the
training set, which the loop turns into steps when it knows how large the set is.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ecapa_jax.config import Checked, ModelConfig
from ecapa_jax.presets import PRESETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """Which speech, and how batches are made of it.

    Attributes:
      manifest: Parquet file that `ecapa-jax prepare` wrote.
      sampler: an epoch is every utterance once, or every speaker once with a random utterance of each.
      batch_size: utterances a step, over all devices and micro-batches.
      crop_seconds: length of the random crop; longer than a short utterance, which is repeated or zero-padded to it.
      short: how a short utterance is filled.
      speeds: speed factors; the first is 1.
      speed_probability: of a speed other than the first, drawn evenly among them; -1 draws evenly from all.
      speed_speakers: whether each other speed makes new speakers (class = speaker + n_speakers * index of the speed).
      threads, prefetch: of the loader: reading threads, and batches held ready.
      cache_gigabytes: decoded audio kept in memory; 0 reads files every time.
    """

    manifest: str = ""
    sampler: Literal["utterances", "speakers"] = "utterances"
    batch_size: int = 256
    crop_seconds: float = 3.0
    short: Literal["repeat", "zeros"] = "repeat"
    speeds: tuple[float, ...] = (1.0,)
    speed_probability: float = -1.0
    speed_speakers: bool = True
    threads: int = 8
    prefetch: int = 4
    cache_gigabytes: float = 0.0

    @property
    def class_speeds(self) -> tuple[float, ...]:
        """The speeds that make classes of their own: class = speaker + n_speakers * place in here."""
        return self.speeds if self.speed_speakers else self.speeds[:1]

    def _check(self) -> None:
        self._require(self.batch_size > 0 and self.crop_seconds > 0, "batch_size and crop_seconds must be positive")
        self._require(bool(self.speeds) and self.speeds[0] == 1.0, "speeds must start with 1.0")
        self._require(all(0.5 <= speed <= 2 for speed in self.speeds), "speeds must lie in [0.5, 2]")
        self._require(len(set(self.speeds)) == len(self.speeds), "speeds must differ")
        self._require(-1 <= self.speed_probability <= 1, "speed_probability lies in [0, 1], or is -1")
        self._require(self.threads > 0 and self.prefetch > 0, "threads and prefetch must be positive")
        self._require(self.cache_gigabytes >= 0, "cache_gigabytes must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(Checked):
    """What is done to a crop, on the device, keyed by (seed, step, example).

    Attributes:
      probability: of an example being augmented at all by what follows up to `telephone`; the others keep their sound.
      noise, music, babble, mixture, reverberation: relative frequency of each, one of which an augmented example gets;
        `reverberation_noise` is both. A mixture adds one other example of the batch: two people speak at once, which
        only a teacher can label. A source without a folder is generated: coloured noise, image-source rooms,
        babble from the batch; generated music is none, its share goes to noise.
      noise_snr, music_snr, babble_snr, mixture_snr: ranges, dB.
      babble_voices: fewest and most voices from the batch that make babble.
      musan: folder in MUSAN's layout (`noise/`, `music/`, `speech/`).
      rirs: folder of room impulse responses, searched at any depth, as RIRS_NOISES has them.
      rooms: number of impulse responses kept on the device, drawn from the folder or generated.
      band_probability: of a random band limit (low-pass 2 to 7 kHz, high-pass 50 to 400 Hz, spectral tilt).
      telephone_probability: of 300 to 3400 Hz and 8-bit mu-law companding.
      gain_db: range of the level change, dB.
      drop_probability, drops, drop_samples: chance of, most and longest gaps of silence in the waveform.
      spec_time, spec_time_width, spec_frequency, spec_frequency_width: SpecAugment: number of masks and most frames or
        mel bands each; masked cells are zero after the mean is subtracted.
      peak_normalize: divide by the peak after mixing, as 3D-Speaker does.
    """

    probability: float = 0.0
    noise: float = 1.0
    music: float = 0.0
    babble: float = 0.0
    mixture: float = 0.0
    reverberation: float = 1.0
    reverberation_noise: float = 1.0
    noise_snr: tuple[float, ...] = (0.0, 15.0)
    music_snr: tuple[float, ...] = (5.0, 15.0)
    babble_snr: tuple[float, ...] = (10.0, 30.0)
    babble_voices: tuple[int, ...] = (3, 7)
    mixture_snr: tuple[float, ...] = (0.0, 10.0)
    musan: str = ""
    rirs: str = ""
    rooms: int = 512
    band_probability: float = 0.0
    telephone_probability: float = 0.0
    gain_db: tuple[float, ...] = (0.0, 0.0)
    drop_probability: float = 0.0
    drops: int = 5
    drop_samples: int = 2000
    spec_time: int = 0
    spec_time_width: int = 5
    spec_frequency: int = 0
    spec_frequency_width: int = 8
    peak_normalize: bool = False

    def _check(self) -> None:
        chances = (self.probability, self.band_probability, self.telephone_probability, self.drop_probability)
        self._require(all(0 <= chance <= 1 for chance in chances), "probabilities lie in [0, 1]")
        shares = (self.noise, self.music, self.babble, self.mixture, self.reverberation, self.reverberation_noise)
        self._require(all(share >= 0 for share in shares), "relative frequencies must not be negative")
        self._require(self.probability == 0 or sum(shares) > 0, "probability needs one relative frequency above zero")
        for name in ("noise_snr", "music_snr", "babble_snr", "mixture_snr", "gain_db", "babble_voices"):
            pair = getattr(self, name)
            self._require(len(pair) == 2 and pair[0] <= pair[1], f"{name} must be two ascending numbers")
        self._require(self.babble_voices[0] >= 1, "babble needs a voice")
        self._require(self.rooms > 0, "rooms must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Checked):
    """Margin softmax over the training speakers.

    Attributes:
      kind: additive angular margin (`aam`), additive margin (`am`), or no margin (`softmax`, still of cosines).
      scale: factor on the cosines (s).
      margin: final margin (m); rises to it by `schedule`.
      fallback: of AAM where the angle plus margin passes pi: `continuous` (cos - 1 - cos(pi - m); 3D-Speaker,
        WeSpeaker) or `sine` (cos - m sin(pi - m); SpeechBrain, TaoRuijie).
      sub_centres: vectors a speaker; the nearest counts.
      top_k, top_k_margin: inter-top-K: the K nearest other speakers are pulled nearer by this angle.
      schedule: of the margin: `constant`, or from `start_margin` to `margin` between `start` and `end` (in `run.unit`).
    """

    kind: Literal["aam", "am", "softmax"] = "aam"
    scale: float = 32.0
    margin: float = 0.2
    fallback: Literal["continuous", "sine"] = "continuous"
    sub_centres: int = 1
    top_k: int = 0
    top_k_margin: float = 0.06
    schedule: Literal["constant", "exponential", "linear", "step"] = "constant"
    start_margin: float = 0.0
    start: float = 0.0
    end: float = 0.0

    def _check(self) -> None:
        self._require(self.scale > 0 and self.sub_centres > 0, "scale and sub_centres must be positive")
        self._require(0 <= self.margin < 1.5 and 0 <= self.start_margin < 1.5, "margins lie in [0, 1.5)")
        self._require(self.top_k >= 0 and self.top_k_margin >= 0, "top_k and its margin must not be negative")
        self._require(self.schedule == "constant" or self.start < self.end or self.schedule == "step", "start < end")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(Checked):
    """A model whose embeddings the trained model, the student, learns to give. Without one, the labels teach.

    Attributes:
      embeddings: Parquet file, or folder of Parquet files, with the columns `id` and `embedding`, and where one
        utterance has several views, `variant`; any program may have written it. `ecapa-jax embed --manifest` writes
        such a folder, `ecapa-jax views` the recordings of the variants.
      bundle: one of our bundles instead, or its address; it embeds in the same step what the student hears.
      same_view: share of examples whose teacher bundle hears the student's own view; for the others it hears the
        example without augmentation. A table says itself which view it is of.
      centre: whether the teacher's mean embedding is subtracted from its embeddings.
      cosine: weight of one minus the cosine between the student's and the teacher's embedding.
      relations: weight of the squared difference between the batch's matrix of cosines and the teacher's.
      contrast: weight of the cross entropy between the teacher's and the student's softmax over the teacher's
        embeddings of the batch.
      contrast_scale: factor on the cosines in that softmax.
      labels: weight of the margin softmax over the manifest's speakers; utterances without a speaker do not count.
    """

    embeddings: str = ""
    bundle: str = ""
    same_view: float = 1.0
    centre: bool = True
    cosine: float = 1.0
    relations: float = 0.0
    contrast: float = 0.0
    contrast_scale: float = 20.0
    labels: float = 0.0

    @property
    def is_used(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.embeddings or self.bundle)

    def _check(self) -> None:
        self._require(not (self.embeddings and self.bundle), "name one teacher: embeddings or bundle")
        self._require(0 <= self.same_view <= 1, "same_view lies in [0, 1]")
        weights = (self.cosine, self.relations, self.contrast)
        self._require(min(*weights, self.labels) >= 0, "weights must not be negative")
        self._require(max(weights) > 0, "one of cosine, relations and contrast must be positive")
        self._require(self.contrast_scale > 0, "contrast_scale must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Checked):
    """The optimizer and its learning rate.

    Attributes:
      name: `sgd` (momentum, Nesterov), `adam`, `adamw`, or `muon` (kernels by Muon, the rest by AdamW).
      momentum, nesterov: of SGD and Muon.
      beta1, beta2, epsilon: of Adam and AdamW.
      weight_decay: L2 in the gradient (SGD, Adam: as PyTorch's argument does) or decoupled (AdamW).
      decay: which weights decay: `all`, as PyTorch's default, or `kernels` only (no biases and norms).
      clip_norm: largest global gradient norm; 0 is no limit.
      ema: decay of the moving average of weights that the final model takes; 0 is none.
      schedule: `constant`, `warmup_cosine`, `cyclic` (triangular), `step` (by `decay_factor` every `every`), or
        `exponential` (from `peak` to `floor` at the run's end).
      peak, floor: highest and lowest learning rate.
      warmup: linear, from `floor` (`warmup_cosine`) or zero (`step`, `exponential`, `constant`).
      every, decay_factor: half cycle of `cyclic`, or interval and factor of `step`.
    """

    name: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    decay: Literal["all", "kernels"] = "all"
    clip_norm: float = 0.0
    ema: float = 0.0
    schedule: Literal["constant", "warmup_cosine", "cyclic", "step", "exponential"] = "warmup_cosine"
    peak: float = 0.2
    floor: float = 5e-5
    warmup: float = 0.0
    every: float = 0.0
    decay_factor: float = 0.1

    def _check(self) -> None:
        self._require(0 <= self.floor <= self.peak and self.peak > 0, "need 0 <= floor <= peak, peak > 0")
        self._require(self.weight_decay >= 0 and self.clip_norm >= 0, "weight_decay and clip_norm must not be negative")
        self._require(0 <= self.ema < 1, "ema lies in [0, 1)")
        self._require(self.schedule not in ("cyclic", "step") or self.every > 0, f"{self.schedule} needs every > 0")
        self._require(self.schedule != "exponential" or self.floor > 0, "exponential needs floor > 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepConfig(Checked):
    """How one step is computed.

    Attributes:
      dtype: of the network's products; weights, statistics and loss stay float32.
      micro_batches: the batch is worked through in so many parts, whose gradients are averaged. Batch norm takes its
        statistics from each part.
      rematerialize: keep no activations of the network for the backward pass but compute them again.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batches: int = 1
    rematerialize: bool = False

    def _check(self) -> None:
        self._require(self.micro_batches > 0, "micro_batches must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """How a step is spread over devices. The batch is split over all of them.

    Attributes:
      data, model: the devices as a grid. The classifier is split over the `model` axis, and each of its parts stands
        `data` times. `data = 0` is all devices that there are, divided by `model`.
      batch_norm: statistics of the whole batch (`global`, the same numbers on any number of devices), or of each
        device's part (`replica`, as PyTorch's DistributedDataParallel has them: fewer messages).
    """

    data: int = 1
    model: int = 1
    batch_norm: Literal["global", "replica"] = "global"

    def _check(self) -> None:
        self._require(self.data >= 0 and self.model > 0, "data must not be negative, model must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Length, seed, and what happens every so many steps.

    Attributes:
      unit: of durations: `steps`, or `epochs` of the training set.
      length: of the run, in `unit`.
      seed: of weights, order, crops and augmentation.
      log_every, save_every: steps between lines in the metrics file, and between checkpoints.
      dev_every: steps between dev evaluations, where `dev_trials` names a list; 0 is only at the end.
      keep: newest checkpoints kept, besides the best by dev EER.
      dev_trials: trial list in any format that `ecapa-jax evaluate` reads; its audio is below `dev_root`.
      dev_seconds: at most so much of a dev file is embedded.
    """

    unit: Literal["steps", "epochs"] = "steps"
    length: float = 1000
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    dev_every: int = 0
    keep: int = 2
    dev_trials: str = ""
    dev_root: str = ""
    dev_seconds: float = 30.0

    def _check(self) -> None:
        self._require(self.length > 0, "length must be positive")
        self._require(self.log_every > 0 and self.save_every > 0, "log_every and save_every must be positive")
        self._require(self.keep > 0 and self.dev_every >= 0, "keep must be positive, dev_every not negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartConfig(Checked):
    """Where weights come from when the run directory holds no checkpoint.

    Attributes:
      run: another run's directory: its newest weights, classifier included, with a fresh optimizer (for a large-margin
        stage: the classifier keeps the rows of the speakers and speeds that are still there).
      bundle: a bundle's weights; the classifier is new.
    """

    run: str = ""
    bundle: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """A training run."""

    model: ModelConfig = PRESETS["3dspeaker"]
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    loss: LossConfig = LossConfig()
    teacher: TeacherConfig = TeacherConfig()
    optim: OptimConfig = OptimConfig()
    step: StepConfig = StepConfig()
    mesh: MeshConfig = MeshConfig()
    run: RunConfig = RunConfig()
    start: StartConfig = StartConfig()

    def _check(self) -> None:
        self._require(
            self.data.batch_size % self.step.micro_batches == 0,
            f"batch_size {self.data.batch_size} must be a multiple of micro_batches {self.step.micro_batches}",
        )
