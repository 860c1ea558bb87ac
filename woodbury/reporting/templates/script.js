// Words on a chart as soon as it is pointed at; without this script the browser shows them late.
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg title")) {
  const part = title.parentElement;
  part.dataset.words = title.textContent;
  part.setAttribute("aria-label", title.textContent);
  title.remove();
}
document.addEventListener("pointerover", (event) => {
  const part = event.target.closest("[data-words]");
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.words;
  const box = part.getBoundingClientRect();
  const left = box.left + box.width / 2 - tip.offsetWidth / 2;
  const widest = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(left, widest)) + scrollX}px`;
  tip.style.top = `${box.top + scrollY - tip.offsetHeight - 6}px`;
});

// Tables whose cells have keys are sorted by a click on a column's name; a sum is last in any order.
const compared = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  return isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
};
for (const table of document.querySelectorAll("table.sorted")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.ariaSort === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...table.tBodies[0].rows];
      const sign = order === "ascending" ? 1 : -1;
      rows.sort((a, b) => (key(a) === "" || key(b) === "" ? 1 : sign) * compared(key(a), key(b)));
      table.tBodies[0].append(...rows);
    });
  }
}

// What is to be copied is copied by a click, where the browser allows it.
if (navigator.clipboard) {
  for (const code of document.querySelectorAll(".code")) {
    const text = code.querySelector("pre").textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    code.querySelector("p").append(button);
  }
}
