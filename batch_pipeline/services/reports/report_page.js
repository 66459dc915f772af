"use strict";
// The filter box: shows the cards, and the lines of the index, whose text has all the words.
const form = document.getElementById("filter");
const [words, status] = [form.querySelector("input"), form.querySelector("select")];
const cards = [...document.querySelectorAll(".sheet > li[id]")];
const lines = [...document.querySelectorAll(".index > li")];
const plain = (text) => text.normalize("NFKC").toLowerCase();
let texts;

function filter() {
  texts ??= cards.map((card) => plain(card.textContent));
  const wanted = plain(words.value).split(/\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, number) => {
    const fits =
      (!status.value || card.dataset.status === status.value) &&
      wanted.every((word) => texts[number].includes(word));
    card.hidden = lines[number].hidden = !fits;
    shown += fits;
  });
  form.querySelector("output").textContent = `${shown} of ${cards.length} shown`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
  if (target?.hidden) {
    form.reset(); // a link leads to a card that the filter has hidden
    filter();
    target.scrollIntoView();
  }
});
form.hidden = cards.length === 0;
if (words.value || status.value) filter(); // the browser has kept them across a reload
