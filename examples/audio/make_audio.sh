#!/bin/sh
# Makes the demo's recordings: three flite voices, two sentences each, 16 kHz FLAC.
# Needs Debian's flite and sox (sox only packs FLAC). Synthetic speech; the voices are free (CMU).
set -eu
cd "$(dirname "$0")"
say() {
  flite -voice "$1" -t "$3" -o "$1_$2.wav"
  sox -D "$1_$2.wav" -r 16000 -c 1 -b 16 "$1_$2.flac"
  rm "$1_$2.wav"
  cp "$1_$2.flac" ../../ecapa_jax/serve/static/samples/ # the page offers them too
}
for voice in slt rms awb; do
  say "$voice" 1 "The north wind and the sun were disputing which was the stronger, when a traveller came along."
  say "$voice" 2 "Please call a taxi for half past seven tomorrow morning, and ask the driver to wait by the gate."
done
