// The score on a half circle, with the threshold as a mark.

const SVG = "http://www.w3.org/2000/svg";
const CENTRE = [160, 160];
const RADIUS = 120;

export class Dial {
  constructor(svg, [lowest, highest]) {
    Object.assign(this, { svg, lowest, highest });
    this.arc = this.add("path", { class: "arc", d: arc() });
    for (let step = 0; step <= 4; step += 1) this.tick(lowest + ((highest - lowest) * step) / 4);
    this.needle = this.add("line", { class: "needle", x1: 160, y1: 62, x2: 160, y2: 92, visibility: "hidden" });
    this.mark = this.add("line", { class: "mark", x1: 160, y1: 26, x2: 160, y2: 56, visibility: "hidden" });
  }

  show(score, threshold, text) {
    this.turn(this.needle, score);
    this.turn(this.mark, threshold);
    this.svg.querySelector("title").textContent = text;
  }

  turn(line, value) {
    line.setAttribute("visibility", value === null ? "hidden" : "visible");
    if (value !== null) line.setAttribute("transform", `rotate(${this.angle(value) - 90} ${CENTRE.join(" ")})`);
  }

  angle(value) {
    const share = (value - this.lowest) / (this.highest - this.lowest);
    return 180 * Math.max(0, Math.min(1, share));
  }

  tick(value) {
    const radians = (Math.PI * (180 - this.angle(value))) / 180;
    const text = this.add("text", {
      class: "tick",
      x: CENTRE[0] + (RADIUS + 24) * Math.cos(radians),
      y: CENTRE[1] + 4 - (RADIUS + 20) * Math.sin(radians),
    });
    text.textContent = String(Math.round(100 * value) / 100).replace("-", "−");
  }

  add(kind, attributes) {
    const element = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    this.svg.append(element);
    return element;
  }
}

function arc() {
  const [x, y] = CENTRE;
  return `M ${x - RADIUS} ${y} A ${RADIUS} ${RADIUS} 0 0 1 ${x + RADIUS} ${y}`;
}
