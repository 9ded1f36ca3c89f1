"""reading: owns what is taken out of a page: its text, and numbered elements to click or fill."""

from __future__ import annotations

from typing import Any

TEXT_CHARS = 12_000
ELEMENTS = 150
WORDS = 120  # characters of one element's text
ADDRESS = 500

# Bounded inside the page: what comes out of a huge one must not be huge.
READ = """({offset, chars, elements}) => {
  const mark = 'data-loopbox-ref';
  document.querySelectorAll(`[${mark}]`).forEach(e => e.removeAttribute(mark));
  const found = [];
  let more = false;
  const wanted = 'a[href],button,input,select,textarea,summary,[role=button],[role=link],[onclick],' +
                 '[contenteditable=true]';
  for (const e of document.querySelectorAll(wanted)) {
    const box = e.getBoundingClientRect();
    if (e.type === 'hidden' || !box.width || !box.height || getComputedStyle(e).visibility === 'hidden') continue;
    if (found.length === elements) { more = true; break; }
    const tag = e.tagName.toLowerCase();
    const label = (e.labels && e.labels[0] && e.labels[0].innerText) || '';
    const text = label || e.getAttribute('aria-label') || e.getAttribute('placeholder') ||
                 (tag === 'select' ? '' : e.innerText) || e.name || e.title || e.id || '';
    const options = tag === 'select' ? Array.from(e.options).slice(0, 20).map(o => o.label).join(' | ') : '';
    const ticked = e.type === 'checkbox' || e.type === 'radio';
    const value = e.type === 'password' ? (e.value ? '***' : '') : ticked ? String(e.checked)
                : tag === 'select' ? (e.selectedOptions[0] || {label: ''}).label : e.value;
    e.setAttribute(mark, found.length + 1);
    found.push({
      ref: found.length + 1,
      kind: tag === 'a' ? 'link' : tag === 'input' ? e.type : tag,
      text: (text + (options ? ` (${options})` : '')).replace(/\\s+/g, ' ').trim().slice(0, 400),
      url: tag === 'a' ? String(e.href).slice(0, 1000) : null,
      value: typeof value === 'string' ? value.slice(0, 400) : null,
    });
  }
  const text = document.body ? document.body.innerText : '';
  return {text: text.slice(offset, offset + chars), total_chars: text.length, more, elements: found};
}"""


def fit(told: dict[str, Any]) -> dict[str, Any]:
    """Return a page's answer as the result has it, bounded again: scripts of the page may have meddled. Any: JSON."""
    text = str(told["text"])[:TEXT_CHARS]
    total = int(told["total_chars"])
    elements = [
        {
            "ref": int(one["ref"]),
            "kind": str(one["kind"])[:20],
            "text": str(one["text"])[:WORDS],
            "url": str(one["url"])[:ADDRESS] if one["url"] else None,
            "value": str(one["value"])[:WORDS] if one["value"] else None,
        }
        for one in told["elements"][:ELEMENTS]
    ]
    return {
        "text": text,
        "total_chars": total,
        "truncated": bool(told["more"]) or len(text) < total,
        "elements": elements,
    }
