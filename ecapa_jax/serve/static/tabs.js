// Tabs by the pattern of the ARIA guide: one stop of the Tab key, arrow keys between tabs, the choice in the address.

export class Tabs {
  constructor(list) {
    this.tabs = [...list.querySelectorAll("[role=tab]")];
    for (const tab of this.tabs) tab.addEventListener("click", () => this.choose(tab));
    list.addEventListener("keydown", (event) => this.move(event));
    window.addEventListener("hashchange", () => this.follow());
    this.follow();
  }

  follow() {
    const wanted = this.tabs.find((tab) => `#${name(tab)}` === location.hash);
    if (wanted) this.show(wanted);
  }

  choose(tab) {
    history.replaceState(null, "", `#${name(tab)}`);
    this.show(tab);
  }

  show(tab) {
    for (const other of this.tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
    document.title = `${tab.textContent} ecapa-jax`;
  }

  move(event) {
    const place = this.tabs.indexOf(document.activeElement);
    const last = this.tabs.length - 1;
    const next = { ArrowRight: place === last ? 0 : place + 1, ArrowLeft: place === 0 ? last : place - 1, Home: 0, End: last }[event.key];
    if (next === undefined || place < 0) return;
    event.preventDefault();
    this.tabs[next].focus();
    this.choose(this.tabs[next]);
  }
}

const name = (tab) => tab.id.replace("tab-", "");
