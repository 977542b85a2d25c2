// As much of a browser as the page of events needs: elements from a JSON tree, selectors, listeners, one frame at a time.
"use strict";
const vm = require("node:vm"), tree = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const POINTED = 0.4567; // where on the whole chart
const WIDTH = 500; // of the chart on the screen, half of what its coordinates say

class Element {
  constructor(node, parent) {
    this.tag = node.tag; this.attributes = { ...node.attributes }; this.textContent = node.text; this.parentNode = parent;
    this.children = node.children.map(c => new Element(c, this)); this.listeners = {};
    this.hidden = "hidden" in this.attributes; this.captured = [];
    this.dataset = Object.fromEntries(
      Object.entries(this.attributes).filter(([k]) => k.startsWith("data-")).map(([k, v]) => [k.slice(5), v]));
  }
  get id() { return this.attributes.id || ""; }
  getAttribute(name) { return name in this.attributes ? this.attributes[name] : null; }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, f) { (this.listeners[name] ||= []).push(f); }
  dispatch(name, event) { for (const f of this.listeners[name] || []) f({ preventDefault() { this.stopped = true; }, ...event }); }
  getBoundingClientRect() { return { left: 0, width: WIDTH }; }
  setPointerCapture(id) { this.captured.push(id); }
  is(part) {
    const [, tag, rest] = part.match(/^([a-z]*)(.*)$/);
    const classes = (this.attributes.class || "").split(/\s+/);
    return (!tag || tag === this.tag)
      && [...rest.matchAll(/\.([\w-]+)/g)].every(m => rest.indexOf("[") >= 0 && m.index > rest.indexOf("[") || classes.includes(m[1]))
      && [...rest.matchAll(/\[(\w+)="([^"]*)"\]/g)].every(m => this.attributes[m[1]] === m[2]);
  }
  querySelectorAll(selector) {
    const parts = selector.split(" "), last = parts.pop(), out = [];
    const above = (e, wanted) => {
      if (!wanted.length) return true;
      for (let p = e.parentNode; p; p = p.parentNode) if (p.is(wanted.at(-1))) return above(p, wanted.slice(0, -1));
      return false;
    };
    const walk = e => { for (const c of e.children) { if (c.is(last) && above(c, parts)) out.push(c); walk(c); } };
    walk(this);
    return out;
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] || null; }
}

const document = new Element(tree, null), frames = [];
const code = document.querySelectorAll("script").find(s => !s.attributes.type).textContent;
vm.runInNewContext(code, { document, requestAnimationFrame: f => frames.push(f), JSON, Math, Map, Infinity });
const svg = document.querySelector(".zoom").querySelector("svg");
const look = name => {
  while (frames.length) frames.shift()();
  return {
    name, from: svg.querySelector(".from").textContent, to: svg.querySelector(".to").textContent,
    paths: svg.querySelectorAll("path").map(p => p.getAttribute("d")),
    bands: svg.querySelectorAll(".bands rect").map(r => [+r.getAttribute("x"), +r.getAttribute("width")]),
    shown: !document.querySelector(".how").hidden,
    at: svg.querySelector(".at").textContent, ranges: svg.querySelectorAll(".range").map(r => r.textContent),
  };
};
const seen = [look("whole")];
const act = (name, ...events) => { for (const [kind, event] of events) svg.dispatch(kind, event); seen.push(look(name)); };
const wheel = (deltaY, clientX) => ["wheel", { deltaY, clientX }];
act("in", ...Array(10).fill(wheel(-100, 0.7 * WIDTH)));
act("dragged", ["pointerdown", { pointerId: 1, clientX: 250 }], ["pointermove", { pointerId: 1, clientX: 350 }],
  ["pointerup", { pointerId: 1 }], ["pointermove", { pointerId: 1, clientX: 10 }]);
act("out", ...Array(40).fill(wheel(100, 100)));
act("deep", ...Array(200).fill(wheel(-100, 100)));
act("double", ["dblclick", {}]);
act("pinched", ["pointerdown", { pointerId: 1, clientX: 200 }], ["pointerdown", { pointerId: 2, clientX: 300 }],
  ["pointermove", { pointerId: 2, clientX: 400 }], ["pointerup", { pointerId: 1 }], ["pointercancel", { pointerId: 2 }]);
act("whole again", ["dblclick", {}]);
act("pointed", ["pointermove", { pointerId: 1, clientX: POINTED * WIDTH }]);
act("pointed at a gap", ["pointermove", { pointerId: 1, clientX: 0.05 * WIDTH }]);
act("left", ["pointerleave", {}]);
document.querySelector("a.go").dispatch("click", {});
seen.push(look("event"));
console.log(JSON.stringify(seen));
