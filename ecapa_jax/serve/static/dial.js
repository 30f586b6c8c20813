// Shows the score on a half circle. A pointer can drag the mark of the threshold; keys move the slider beside it.

const SVG = "http://www.w3.org/2000/svg";
const CENTRE = [160, 160];
const RADIUS = 120;

export class Dial {
  constructor(svg, [lowest, highest], onThreshold) {
    Object.assign(this, { svg, lowest, highest, onThreshold });
    svg.replaceChildren(svg.querySelector("title"));
    this.add("path", { class: "arc", d: arc() });
    this.filled = this.add("path", { class: "arc filled", d: arc(), pathLength: 1, "stroke-dasharray": "0 2" });
    for (let step = 0; step <= 4; step += 1) this.tick(lowest + ((highest - lowest) * step) / 4);
    this.needle = this.add("path", { class: "needle", d: "M 160 54 l -7 16 h 14 z", visibility: "hidden" });
    this.mark = this.add("g", { class: "mark", visibility: "hidden" });
    this.add("path", { class: "grip", d: "M 146 20 h 28 v 44 h -28 z" }, this.mark);
    for (const kind of ["halo", "line"]) this.add("path", { class: kind, d: "M 160 28 V 54 M 154 26 h 12" }, this.mark);
    this.mark.addEventListener("pointerdown", (event) => { event.preventDefault(); this.mark.setPointerCapture(event.pointerId); });
    this.mark.addEventListener("pointermove", (event) => {
      if (this.mark.hasPointerCapture(event.pointerId)) this.onThreshold(this.valueAt(event));
    });
  }

  show(score, threshold, text) {
    this.turn(this.needle, score);
    this.filled.setAttribute("stroke-dasharray", `${score === null ? 0 : this.angle(score) / 180} 2`);
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

  valueAt({ clientX, clientY }) {
    const place = new DOMPoint(clientX, clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    const angle = Math.atan2(CENTRE[1] - place.y, CENTRE[0] - place.x); // 0 on the left, pi on the right
    const share = angle < -Math.PI / 2 ? 1 : Math.max(0, angle / Math.PI);
    return this.lowest + share * (this.highest - this.lowest);
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

  add(kind, attributes, parent = this.svg) {
    const element = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  }
}

function arc() {
  const [x, y] = CENTRE;
  return `M ${x - RADIUS} ${y} A ${RADIUS} ${RADIUS} 0 0 1 ${x + RADIUS} ${y}`;
}
