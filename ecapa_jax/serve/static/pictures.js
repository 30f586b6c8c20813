// Draws the waveform and the log-mel picture from the answer of /v1/features.

// From dark to bright in even steps of lightness: blue, teal, yellow.
const STOPS = [[13, 20, 48], [25, 62, 110], [22, 112, 132], [64, 160, 124], [158, 202, 92], [253, 240, 140]];

// colourOf: from a part's number to the name of the style's colour.
export function drawWave(canvas, peaks, colourOf = () => "--wave") {
  const draw = canvas.getContext("2d");
  const middle = canvas.height / 2;
  const loudest = Math.max(0.02, ...peaks.flat().map(Math.abs));
  draw.clearRect(0, 0, canvas.width, canvas.height);
  const style = getComputedStyle(canvas);
  const width = canvas.width / peaks.length;
  peaks.forEach(([low, high], index) => {
    const top = middle - (high / loudest) * (middle - 4);
    const height = Math.max(1.5, ((high - low) / loudest) * (middle - 4));
    draw.fillStyle = style.getPropertyValue(colourOf(index));
    draw.fillRect(index * width, top, Math.max(1, width - 0.5), height);
  });
}

export function drawMel(canvas, { mels, columns, image }) {
  const values = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
  canvas.width = columns;
  canvas.height = mels;
  const draw = canvas.getContext("2d");
  const picture = draw.createImageData(columns, mels);
  for (let band = 0; band < mels; band += 1) {
    for (let column = 0; column < columns; column += 1) {
      const at = 4 * ((mels - 1 - band) * columns + column);
      picture.data.set(colour(values[band * columns + column] / 255), at);
    }
  }
  draw.putImageData(picture, 0, 0);
}

function colour(value) {
  const place = value * (STOPS.length - 1);
  const index = Math.min(Math.floor(place), STOPS.length - 2);
  const mix = STOPS[index].map((low, channel) => low + (place - index) * (STOPS[index + 1][channel] - low));
  return [...mix, 255];
}
