/* What pages do beyond links and forms: keys on the contact sheet, the slider, selections, live parts that wait while
   somebody works in them, times in the reader's own zone. Every page reads without it. */
"use strict";

(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const csrf = () => document.body.dataset.csrf;
  root.classList.add("js");

  /* Times */

  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const brief = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  function localise(within) {
    for (const time of all("time[datetime]", within)) {
      const moment = new Date(time.dateTime);
      if (Number.isNaN(moment.getTime())) continue;
      time.title = whole.format(moment);
      if ("moment" in time.dataset) time.textContent = brief.format(moment);
      if ("clock" in time.dataset) time.textContent = clock.format(moment);
    }
  }

  /* What is said */

  function say(text, bad = false) {
    const toast = document.createElement("p");
    toast.className = bad ? "toast bad" : "toast";
    toast.textContent = text;
    document.getElementById("toasts").append(toast);
    fade(toast);
  }
  function fade(toast) {
    window.setTimeout(() => toast.remove(), toast.classList.contains("bad") ? 12000 : 6000);
  }

  /* Before and after */

  function slide(input) {
    input.closest("[data-compare]").style.setProperty("--cut", `${input.value}%`);
  }

  /* Selections */

  function count() {
    const boxes = all('#bulk input[name="job"]');
    const picked = boxes.filter((box) => box.checked).length;
    const label = document.querySelector("[data-picked]");
    const every = document.querySelector("[data-pick-all]");
    if (label) label.textContent = picked ? `${picked} selected` : "Select the page";
    if (every) {
      every.checked = picked > 0 && picked === boxes.length;
      every.indeterminate = picked > 0 && picked < boxes.length;
    }
  }

  document.addEventListener("input", (event) => {
    if (event.target.matches("[data-compare] input")) slide(event.target);
  });
  document.addEventListener("change", (event) => {
    const target = event.target;
    if (target.matches("[data-pick-all]")) {
      for (const box of all('#bulk input[name="job"]')) box.checked = target.checked;
      count();
    } else if (target.matches('#bulk input[name="job"]')) {
      count();
    } else if (target.matches("[data-submit]")) {
      target.form.requestSubmit();
    }
  });
  /* A form that was sent is sent again only once its answer fails to come: the second answer would hide the first. */
  const ANSWER_MS = 10_000;
  let sent = { what: "", until: 0 };
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented) return; /* htmx sends it */
    if (form.dataset.confirm && !window.confirm(form.dataset.confirm)) return event.preventDefault();
    if (form.method !== "post") return;
    const what = `${form.action} ${new URLSearchParams(new FormData(form, event.submitter))}`;
    if (what === sent.what && event.timeStamp < sent.until) return event.preventDefault();
    sent = { what, until: event.timeStamp + ANSWER_MS };
  });
  window.addEventListener("pageshow", () => { sent = { what: "", until: 0 }; });

  /* Theme: at once, and kept by the form's own answer */

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-theme-form] button");
    if (!button) return;
    event.preventDefault();
    const theme = button.value;
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.dataset.theme = theme;
    for (const each of all("[data-theme-form] button")) each.setAttribute("aria-pressed", String(each.value === theme));
    const body = new URLSearchParams({ theme, back: "/", csrf_token: csrf() });
    fetch("/theme", { method: "POST", body, redirect: "manual" });
  });

  /* Live parts */

  const stale = new Set();
  function held(part) {
    if (!("hold" in part.dataset)) return false;
    return part.contains(document.activeElement) || all('input[name="job"]:checked', part).length > 0;
  }
  function refresh(part) {
    stale.delete(part);
    window.htmx.trigger(part, "refresh");
  }
  document.addEventListener("htmx:configRequest", (event) => {
    event.detail.headers["X-CSRF-Token"] = csrf();
  });
  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.detail.elt;
    if (!("live" in part.dataset)) return;
    /* The title shows progress also in a tab behind others; the rest waits until somebody looks. */
    if (held(part) || (document.hidden && "hold" in part.dataset)) {
      stale.add(part);
      event.preventDefault();
    }
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    /* Somebody began to work in it while its answer was on the way. */
    if ("live" in event.detail.target.dataset && held(event.detail.target)) {
      event.detail.shouldSwap = false;
      stale.add(event.detail.target);
    }
  });
  document.addEventListener("focusout", () => window.setTimeout(() => {
    for (const part of stale) if (!held(part) && !document.hidden) refresh(part);
  }, 50));
  /* A browser holds six connections to a host open: tabs that nobody sees give theirs back. Their titles go on showing
     progress, only less often. */
  class Line {
    #url; #source = null; #listeners = [];
    constructor(url) {
      this.#url = url;
      if (!document.hidden) this.open();
    }
    open() {
      if (this.#source) return;
      this.#source = new EventSource(this.#url);
      this.#source.onopen = (event) => this.onopen?.(event);
      this.#source.onerror = (event) => this.onerror?.(event);
      for (const [name, listener] of this.#listeners) this.#source.addEventListener(name, listener);
    }
    rest() {
      if (this.readyState === EventSource.CLOSED) return; /* given up: whoever holds it opens another */
      this.#source?.close();
      this.#source = null;
    }
    close() { this.#source?.close(); lines.delete(this); }
    get readyState() { return this.#source ? this.#source.readyState : EventSource.CONNECTING; }
    addEventListener(name, listener) {
      this.#listeners.push([name, listener]);
      this.#source?.addEventListener(name, listener);
    }
    removeEventListener(name, listener) {
      this.#listeners = this.#listeners.filter((each) => each[0] !== name || each[1] !== listener);
      this.#source?.removeEventListener(name, listener);
    }
  }
  const lines = new Set();
  let glance = 0;
  window.htmx.createEventSource = (url) => {
    const line = new Line(url);
    lines.add(line);
    return line;
  };
  function rest() {
    for (const line of lines) line.rest();
    window.clearInterval(glance);
    glance = window.setInterval(() => {
      for (const part of all("[data-live]:not([data-hold])")) refresh(part);
    }, 5000);
  }
  function wake() {
    window.clearInterval(glance);
    for (const line of lines) line.open(); /* its first event comes at once, and has the parts asked for again */
    for (const part of [...stale]) if (!held(part)) refresh(part);
  }
  document.addEventListener("visibilitychange", () => (document.hidden ? rest() : wake()));
  if (document.hidden) rest();
  function standing(text, away) {
    for (const mark of all("[data-live-state]")) {
      mark.textContent = text;
      mark.classList.toggle("away", away);
    }
  }
  let lost = false;
  document.addEventListener("htmx:sseError", () => {
    lost = true;
    standing("reconnecting…", true);
  });
  document.addEventListener("htmx:sseOpen", () => {
    standing("live", false);
    if (lost) for (const part of all("[data-live]")) refresh(part);
    lost = false;
  });
  document.addEventListener("htmx:responseError", (event) => {
    const { status, responseText } = event.detail.xhr;
    say(responseText && responseText.length < 400 ? responseText : `The server answered ${status}.`, true);
  });
  document.addEventListener("htmx:sendError", () => say("The server cannot be reached.", true));
  document.addEventListener("htmx:afterSettle", (event) => {
    localise(event.target);
    count();
    if (at !== null && event.target.dataset?.frame === at) walkBack();
  });

  /* The contact sheet by keys */

  const sheet = document.querySelector("[data-sheet]");
  let at = null; /* the id of the frame that the keys act on */
  const frames = () => all("[data-frame]", sheet);
  function mark(frame, scroll = true) {
    if (!frame) return;
    for (const each of frames()) each.classList.toggle("at", each === frame);
    at = frame.dataset.frame;
    frame.focus({ preventScroll: true });
    if (scroll) frame.scrollIntoView({ block: "nearest" });
  }
  function walkBack() {
    const frame = sheet.querySelector(`[data-frame="${at}"]`);
    if (frame) mark(frame, false);
  }
  function columns() {
    const list = frames();
    const first = list.findIndex((frame) => frame.offsetTop !== list[0].offsetTop);
    return first === -1 ? list.length : first;
  }
  function step(by) {
    const list = frames();
    const here = list.findIndex((frame) => frame.dataset.frame === at);
    const next = here === -1 ? 0 : here + by;
    if (next >= 0 && next < list.length) return mark(list[next]);
    const link = document.querySelector(next < 0 ? 'a[rel="prev"]' : 'a[rel="next"]');
    if (here !== -1 && link && Math.abs(by) === 1) window.location.assign(link.href);
  }
  function decide(key) {
    const frame = sheet.querySelector(`[data-frame="${at}"]`);
    const form = frame?.querySelector(`[data-decide="${key}"]`);
    if (!form || form.querySelector("button").disabled) return;
    form.requestSubmit();
    if (key !== "g") step(1);
  }
  if (sheet) {
    sheet.addEventListener("focusin", (event) => {
      const frame = event.target.closest("[data-frame]");
      if (frame && frame.dataset.frame !== at) {
        for (const each of frames()) each.classList.toggle("at", each === frame);
        at = frame.dataset.frame;
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
      const moves = {
        j: () => step(1), k: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
        ArrowDown: () => step(columns()), ArrowUp: () => step(-columns()),
        a: () => decide("a"), r: () => decide("r"), g: () => decide("g"),
        Enter: () => event.target.matches("[data-frame]") && event.target.querySelector("[data-open]").click(),
      };
      const move = moves[event.key];
      if (!move || (event.key === "Enter" && !event.target.matches("[data-frame]"))) return;
      event.preventDefault();
      move();
    });
  }

  /* New batch: files dropped anywhere on the field */

  for (const drop of all("[data-drop]")) {
    const input = drop.querySelector('input[type="file"]');
    const told = drop.querySelector("[data-dropped]");
    const show = () => {
      const names = Array.from(input.files, (file) => file.name);
      told.textContent = names.length > 3 ? `${names.length} files: ${names.slice(0, 3).join(", ")}, …` : names.join(", ");
    };
    input.addEventListener("change", show);
    for (const name of ["dragenter", "dragover"]) {
      drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
    }
    for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      input.files = event.dataTransfer.files;
      show();
    });
  }

  localise(document);
  count();
  for (const toast of all(".toast")) fade(toast);
})();
