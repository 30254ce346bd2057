"use strict";
// Keeps the page as the daemon is: parts come as the same HTML that the server renders, and only what differs is changed,
// so that focus, selection, scroll position and what was folded open stay.
(() => {
  const live = document.getElementById("live");
  const news = document.getElementById("news");
  const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  const UNITS = [["year", 31557600], ["month", 2629800], ["day", 86400], ["hour", 3600], ["minute", 60]];
  let stream = null, hidden_s = 0;

  const relative = (at) => {
    const seconds = (at - Date.now()) / 1000;
    for (const [unit, length] of UNITS)
      if (Math.abs(seconds) >= length) return RELATIVE.format(Math.trunc(seconds / length), unit);
    return "just now";
  };
  const tellTimes = (within) => {
    for (const time of within.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime), text = relative(at), title = at.toLocaleString();
      if (time.textContent !== text) time.textContent = text;
      if (time.title !== title) time.title = title;
    }
  };

  const parsed = (html) => new DOMParser().parseFromString(html, "text/html").body;

  // Makes the children of `now` those of `next`. Elements with an id are the same element wherever they stand.
  const morph = (now, next) => {
    let at = now.firstChild;
    for (const wanted of [...next.childNodes]) {
      const here = same(at, wanted) ? at : found(at, wanted);
      if (here) {
        if (here !== at) now.insertBefore(here, at);
        else at = at.nextSibling;
        become(here, wanted);
      } else now.insertBefore(document.importNode(wanted, true), at);
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  };
  const same = (one, other) => one && one.nodeType === other.nodeType && one.nodeName === other.nodeName
    && (one.id || "") === (other.id || "");
  const found = (from, wanted) => {
    if (!wanted.id) return null;
    for (let one = from; one; one = one.nextSibling) if (same(one, wanted)) return one;
    return null;
  };
  const become = (here, wanted) => {
    if (here.nodeType !== Node.ELEMENT_NODE) {
      if (here.nodeValue !== wanted.nodeValue) here.nodeValue = wanted.nodeValue;
      return;
    }
    for (const { name } of [...here.attributes])
      if (!wanted.hasAttribute(name) && !(here.nodeName === "DETAILS" && name === "open")) here.removeAttribute(name);
    for (const { name, value } of wanted.attributes)
      if (here.getAttribute(name) !== value) here.setAttribute(name, value);
    morph(here, wanted);
  };

  const say = (text, lost) => {
    if (live.textContent !== text) live.textContent = text;
    live.classList.toggle("lost", Boolean(lost));
  };
  const part = ({ id, digest, html }) => {
    const section = document.getElementById(id);
    if (!section) return;
    morph(section, parsed(html));
    section.dataset.digest = digest;
    tellTimes(section);
  };
  const row = ({ id, html }) => {
    const item = document.getElementById(id);
    if (item) morph(item, parsed(html));
  };

  const open = () => {
    const have = [...document.querySelectorAll("section[data-digest]")].map((one) => `${one.id}.${one.dataset.digest}`);
    stream = new EventSource(`/dashboard/events?have=${have.join(",")}`);
    stream.addEventListener("open", () => say("Live"));
    stream.addEventListener("part", (event) => part(JSON.parse(event.data)));
    stream.addEventListener("row", (event) => row(JSON.parse(event.data)));
    stream.addEventListener("news", (event) => { news.textContent = JSON.parse(event.data).text; });
    stream.addEventListener("end", (event) => { say(JSON.parse(event.data).text, true); close(); });
    stream.addEventListener("error", () => {
      if (!stream) return;
      const signedOut = stream.readyState === EventSource.CLOSED;
      say(signedOut ? "Not live: the daemon was started again, or you are signed out. Run: ian dashboard"
        : "No connection to the daemon; trying again. What stands here may be old.", true);
      if (signedOut) close();
    });
  };
  const close = () => { if (stream) stream.close(); stream = null; };

  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden_s);
    if (document.hidden) hidden_s = setTimeout(close, 10000);
    else if (!stream) open();
  });
  setInterval(() => tellTimes(document), 20000);
  tellTimes(document);
  say("Connecting");
  open();
})();
