"use strict";
// Arrow keys move from unit to unit; Escape closes the card.  Tab works without this.
const units = [...document.querySelectorAll(".unit")];
document.addEventListener("keydown", (event) => {
  const at = units.indexOf(document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (at < 0) return;
  if (event.key === "Escape") units[at].blur();
  if (step && units[at + step]) {
    event.preventDefault();
    units[at + step].focus();
  }
});
