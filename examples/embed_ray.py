"""Embeds the recordings of a manifest on a Ray cluster.

    pip install -e ".[corpus]" "ray[data]"    # from a package index: pip install "ecapa-jax[corpus]" "ray[data]"
    python examples/embed_ray.py MANIFEST -o DIR [--model BUNDLE] [--workers 2] [--address CLUSTER]

Without --address, Ray starts on this machine. Every worker is a process that loads the model once and embeds batch
after batch. On a cluster, recordings and model must have the same paths on all machines. The script writes Parquet
files with id, embedding, seconds and error to DIR. Ray repeats failed batches. Unlike with `ecapa-jax embed
--manifest`, an interrupted run starts from the beginning.
"""

from __future__ import annotations

import argparse
import functools
import os

import pyarrow as pa
import ray

import ecapa_jax
from ecapa_jax.corpus.manifest import read_manifest
from ecapa_jax.corpus.shard import ShardEmbedder


class Embedder(ShardEmbedder):
    """A ShardEmbedder that returns Arrow tables with the same types, even if all recordings of a batch are bad."""

    def __call__(self, batch: dict) -> pa.Table:
        rows = super().__call__(batch)
        dim = rows["embedding"].shape[1]
        failed = pa.array([bool(error) for error in rows["error"]])
        values = pa.array(rows["embedding"].reshape(-1))
        return pa.table(
            {
                "id": pa.array(rows["id"], pa.string()),
                "embedding": pa.FixedSizeListArray.from_arrays(values, dim, mask=failed),
                "seconds": pa.array(rows["seconds"], from_pandas=True),
                "error": pa.array([error or None for error in rows["error"]], pa.string()),
            }
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("-o", "--out", required=True)
    parser.add_argument("--model", help="bundle directory; the packaged model unless given")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--address", help="of a running cluster; started here unless given")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.manifest)
    if arguments.address:
        ray.init(address=arguments.address)
    else:
        ray.init(num_cpus=arguments.workers + 1, include_dashboard=False)  # one CPU reads and writes
    model = os.path.abspath(arguments.model) if arguments.model else None
    (
        ray.data.from_arrow(manifest.table)
        .repartition(max(1, len(manifest) // arguments.batch_size))
        .map_batches(
            Embedder,
            fn_constructor_args=(functools.partial(ecapa_jax.load, model),),
            batch_size=arguments.batch_size,
            compute=ray.data.ActorPoolStrategy(size=arguments.workers),
        )
        .write_parquet(os.path.abspath(arguments.out))
    )
    ray.shutdown()


if __name__ == "__main__":
    main()
