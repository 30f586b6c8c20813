"""The configuration of a training run, as frozen dataclasses; `settings` reads them from TOML.

Durations (warm-up, margin, steps of a schedule, length of the run) are in `run.unit`: optimizer steps, or epochs of the
training set, which the loop converts to steps once it knows the size of the set.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from ecapa_jax.config import Checked, ModelConfig
from ecapa_jax.presets import PRESETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Checked):
    """The training data, and how batches are made from it.

    Attributes:
      manifest: Parquet file that `ecapa-jax prepare` wrote.
      sampler: whether an epoch is every utterance once (`utterances`), or a random utterance of every speaker
        (`speakers`).
      batch_size: utterances per step, over all devices and micro-batches.
      crop_seconds: length of the random crop. A shorter utterance is filled up to it.
      short: how a short utterance is filled: `repeat` it, or append `zeros`.
      speeds: speed factors; the first is 1.
      speed_probability: probability of a speed other than the first, drawn evenly; -1 draws evenly from all speeds.
      speed_speakers: whether each other speed makes new speakers (class = speaker + n_speakers * index of the speed).
      threads, prefetch: number of reading threads, and number of batches held ready.
      cache_gigabytes: size of the cache of decoded audio in memory; 0 reads files every time.
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
        """The speeds that make their own classes: class = speaker + n_speakers * index in this tuple."""
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
    """The augmentation of crops, computed on the device; random numbers depend on (seed, step, example).

    Attributes:
      probability: probability that an example gets one of the augmentations from `noise` to `reverberation_noise`.
      noise, music, babble, mixture, reverberation: relative frequencies of the augmentations; an example gets one of
        them; `reverberation_noise` is reverberation and noise together. A mixture adds another example of the batch, so
        that two people speak at once, which only a teacher can label. Without a folder, sounds are generated: coloured
        noise, image-source rooms, and babble from the batch; there is no generated music, noise takes its share.
      noise_snr, music_snr, babble_snr, mixture_snr: ranges of signal-to-noise ratios, dB.
      babble_voices: lowest and highest number of voices from the batch that make babble.
      musan: folder in MUSAN's layout (`noise/`, `music/`, `speech/`).
      rirs: folder of room impulse responses, searched at any depth, such as RIRS_NOISES.
      rooms: number of impulse responses kept on the device, drawn from the folder or generated.
      band_probability: probability of a random band limit (low-pass 2 to 7 kHz, high-pass 50 to 400 Hz, spectral tilt).
      telephone_probability: probability of a telephone channel, 300 to 3400 Hz with 8-bit mu-law companding.
      gain_db: range of changes of level, dB.
      drop_probability, drops, drop_samples: gaps of silence in the waveform: probability, highest number, longest gap.
      spec_time, spec_time_width, spec_frequency, spec_frequency_width: SpecAugment: number of masks, and most frames or
        mel bands of a mask. Masked values are zero, after the mean is subtracted.
      peak_normalize: whether to divide by the peak after mixing, as 3D-Speaker does.
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
      kind: additive angular margin (`aam`), additive margin (`am`), or softmax of cosines without margin (`softmax`).
      scale: factor on the cosines (s).
      margin: final margin (m), reached by `schedule`.
      fallback: what AAM does when angle plus margin exceeds pi: `continuous` (cos - 1 - cos(pi - m); 3D-Speaker,
        WeSpeaker) or `sine` (cos - m sin(pi - m); SpeechBrain, TaoRuijie).
      sub_centres: number of vectors per speaker, of which the nearest is used.
      top_k, top_k_margin: inter-top-K: the K nearest other speakers are pulled nearer by this angle.
      schedule: schedule of the margin: `constant`, or a rise from `start_margin` to `margin` between `start` and `end`
        (in `run.unit`).
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
    """A teacher, whose embeddings the trained model (the student) learns to reproduce. By default there is none.

    Attributes:
      embeddings: Parquet file, or folder of Parquet files, with the columns `id` and `embedding`, and `variant` if an
        utterance has several views. Any program may write it: `ecapa-jax embed --manifest` writes such a folder, and
        `ecapa-jax views` writes the recordings of the variants.
      bundle: a bundle, or its address, as the teacher; it embeds the examples in the training step.
      same_view: share of examples for which a teacher bundle hears the augmented view of the student; for the others it
        hears the example without augmentation. The rows of a table name their view.
      centre: whether to subtract the mean embedding of the teacher from its embeddings.
      cosine: weight of one minus the cosine between the embeddings of student and teacher.
      relations: weight of the squared difference between the matrices of cosines of the batch, by student and teacher.
      contrast: weight of the cross entropy between two softmaxes over the embeddings of the batch by the teacher: that
        of the teacher and that of the student.
      contrast_scale: factor on the cosines in these softmaxes.
      labels: weight of the margin softmax over the speakers of the manifest; utterances without a speaker don't count.
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
      momentum, nesterov: arguments of SGD and Muon.
      beta1, beta2, epsilon: arguments of Adam and AdamW.
      weight_decay: weight decay, added to the gradient (SGD, Adam; as in PyTorch) or decoupled (AdamW).
      decay: which weights decay: `all`, as by default in PyTorch, or `kernels` only (no biases and norms).
      clip_norm: largest global gradient norm; 0 is no limit.
      ema: decay of the moving average of weights, which becomes the final model; 0 uses the weights themselves.
      schedule: schedule of the learning rate: `constant`, `warmup_cosine`, `cyclic` (triangular), `step` (times
        `decay_factor` every `every`), or `exponential` (from `peak` to `floor` at the end of the run).
      peak, floor: highest and lowest learning rate.
      warmup: duration of a linear rise from `floor` (`warmup_cosine`) or zero (`step`, `exponential`, `constant`).
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
      dtype: dtype of the products in the network; weights, statistics and loss stay float32.
      micro_batches: number of parts into which a batch is split; their gradients are averaged. Batch norm takes its
        statistics from each part.
      rematerialize: whether to compute the activations of the network again in the backward pass instead of storing
        them.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    micro_batches: int = 1
    rematerialize: bool = False

    def _check(self) -> None:
        self._require(self.micro_batches > 0, "micro_batches must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Checked):
    """How a step is spread over devices. The batch is split over all devices.

    Attributes:
      data, model: shape of the grid of devices. The classifier is split over the `model` axis and replicated over the
        `data` axis. `data = 0` takes all devices, divided by `model`.
      batch_norm: whether batch norm uses the statistics of the whole batch (`global`, which gives the same numbers on
        any number of devices), or of the part on each device (`replica`, as PyTorch's DistributedDataParallel, which
        sends fewer messages).
    """

    data: int = 1
    model: int = 1
    batch_norm: Literal["global", "replica"] = "global"

    def _check(self) -> None:
        self._require(self.data >= 0 and self.model > 0, "data must not be negative, model must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Checked):
    """Length and seed of the run, and how often it logs, saves and evaluates.

    Attributes:
      unit: unit of durations: `steps`, or `epochs` of the training set.
      length: length of the run, in `unit`.
      seed: seed of weights, order, crops and augmentation.
      log_every, save_every: steps between lines in the metrics file, and between checkpoints.
      dev_every: steps between evaluations on `dev_trials`; 0 evaluates only at the end.
      keep: number of newest checkpoints to keep; the best by dev EER is kept too.
      dev_trials: trial list in any format that `ecapa-jax evaluate` reads; its audio is below `dev_root`.
      dev_seconds: longest part of a dev recording that is embedded.
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
    """Where the weights come from if the run directory holds no checkpoint.

    Attributes:
      run: directory of another run, whose newest weights and classifier are taken, with a fresh optimizer. This is for
        a large-margin stage: the classifier keeps the rows of the speakers and speeds that remain.
      bundle: a bundle whose weights are taken; the classifier is new.
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
