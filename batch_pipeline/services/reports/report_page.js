// Narrows the cards to those whose text holds every word; without it the page shows all.
const box = document.getElementById("filter");
const cards = [...document.querySelectorAll(".sheet > li[id]")];
const texts = cards.map((card) => card.textContent.toLowerCase());
const narrow = () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  cards.forEach((card, number) => {
    card.hidden = !words.every((word) => texts[number].includes(word));
    shown += card.hidden ? 0 : 1;
  });
  document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
};
box.addEventListener("input", narrow);
document.getElementById("narrow").hidden = false;
narrow();
