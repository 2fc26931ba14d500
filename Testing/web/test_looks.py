"""Whether everything can be seen, read and named: at 1280 x 720, dark and light."""

from __future__ import annotations

#: Contrast of all text that is shown against what is under it, disabled controls left out (WCAG 2.2, 1.4.3).
PALE = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const over = (top, under) => { const a = top[3] ?? 1; return [0, 1, 2].map((n) => a * top[n] + (1 - a) * under[n]); };
  const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                        .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
  // A tick's number does not lie on the tick.
  const OFF = ':disabled, .v-btn--disabled, .v-input--disabled, .hes-hidden, .v-slider-track__tick', found = [];
  for (const e of document.querySelectorAll('.v-navigation-drawer *, .v-app-bar *')) {
    const words = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('');
    if (!words || !e.offsetParent || e.closest(OFF)) continue;
    let under = [255, 255, 255], opacity = 1;
    for (const around of [...(function* () { for (let x = e; x; x = x.parentElement) yield x; })()].reverse()) {
      const style = getComputedStyle(around);
      if (style.backgroundColor) under = over(parse(style.backgroundColor), under);
      opacity *= Number(style.opacity);
    }
    const color = parse(getComputedStyle(e).color);
    const shown = over([...color.slice(0, 3), (color[3] ?? 1) * opacity], under);
    const [high, low] = [light(shown), light(under)].sort((x, y) => y - x);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) found.push(contrast.toFixed(2) + ': ' + words.slice(0, 60));
  }
  return found;
}"""


def test_light_and_dark_are_readable(tab):
    def background():
        return tab.page.evaluate("getComputedStyle(document.querySelector('.v-application')).backgroundColor")

    dark = background()
    tab.only("open", "segment", "results", "edit", "adapt", "attention", "models")
    assert tab.page.evaluate(PALE) == []
    tab.click("b-theme")
    tab.wait("getComputedStyle(document.querySelector('.v-application')).backgroundColor !== '" + dark + "'")
    tab.page.wait_for_timeout(500)                          # colors fade over
    assert tab.page.evaluate(PALE) == []
    tab.click("b-theme")
    tab.wait("getComputedStyle(document.querySelector('.v-application')).backgroundColor === '" + dark + "'")


def test_everything_fits_and_has_a_name(tab):
    """At 1280 x 720 nothing lies outside the window or is cut off at the side, and every control says what it is."""
    page = tab.page
    assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [1280, 720]
    tab.only("open", "segment", "results", "edit", "adapt", "attention", "models")
    wide = page.evaluate("""() => [...document.querySelectorAll('.hes-panel *')].filter(e => e.offsetParent &&
        !e.closest('.hes-hidden') && e.getBoundingClientRect().right > 381).map(e => e.outerHTML.slice(0, 120))""")
    assert wide == []
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, a[href], [role=slider]')]
        .filter(e => e.offsetParent && !(e.innerText || '').trim() && !e.getAttribute('aria-label') && !e.title &&
                     !(e.labels && e.labels.length) && !e.getAttribute('aria-labelledby'))
        .map(e => e.outerHTML.slice(0, 160))""")
    assert nameless == [], '\n'.join(nameless)
    box = tab.view("axial")
    assert box["width"] >= 400 and box["height"] >= 600
