"""Enrols speakers and identifies one with sherpa-onnx, without ecapa-jax: see --help.

`ecapa-jax export BUNDLE --to onnx --input sherpa -o model.onnx` writes the model. sherpa-onnx has the same calls in
C++, C#, Go, Java, Kotlin, Swift, Dart and other languages, also on Android and iOS.
"""

import argparse

import numpy as np
import sherpa_onnx
import soundfile


def embed(extractor: sherpa_onnx.SpeakerEmbeddingExtractor, path: str) -> list[float]:
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    stream = extractor.create_stream()
    stream.accept_waveform(rate, np.ascontiguousarray(samples[:, 0]))  # sherpa-onnx resamples to the model's rate
    stream.input_finished()
    assert extractor.is_ready(stream), f"{path} is too short"
    return extractor.compute(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("speakers", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--who", required=True, metavar="FILE")
    parser.add_argument("--threshold", type=float, default=0.3)
    arguments = parser.parse_args()
    extractor = sherpa_onnx.SpeakerEmbeddingExtractor(sherpa_onnx.SpeakerEmbeddingExtractorConfig(arguments.model))
    manager = sherpa_onnx.SpeakerEmbeddingManager(extractor.dim)
    for speaker in arguments.speakers:
        name, _, path = speaker.partition("=")
        assert manager.add(name, embed(extractor, path)), f"{name} is enrolled already"
    unknown = embed(extractor, arguments.who)
    found = manager.search(unknown, threshold=arguments.threshold)
    print(f"it is {found or 'nobody who is enrolled'}")
    for name in manager.all_speakers:
        same = "yes" if manager.verify(name, unknown, threshold=arguments.threshold) else "no"
        print(f"{name}: score {manager.score(name, unknown):.4f}, same speaker {same}")


if __name__ == "__main__":
    main()
