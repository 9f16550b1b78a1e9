// Draws the figures of nb_lib/explore.py (<figure class="nbx">) in the colors of the page, and moves their sliders.
(() => {
  'use strict';
  const library = new URL('plotly.min.js', document.currentScript.src);
  const config = { displayModeBar: false };

  // plotly.js weighs 4.6 MB: loaded once, and only by a page whose reader comes near a figure.
  let loading;
  const plotly = () => loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = library;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error(`${library} is missing`));
    document.head.append(script);
  });

  // The figure's template with the page's font and present colors: what the figure sets itself wins.
  function themed(template, element) {
    const { color: ink, borderTopColor: faint, backgroundColor: ground, fontFamily: family } = getComputedStyle(element);
    const base = template?.layout ?? {};
    const finger = matchMedia('(pointer: coarse)').matches;
    const axis = { gridcolor: faint, linecolor: faint, tickcolor: faint, zerolinecolor: faint };
    const layout = {
      ...base,
      annotationdefaults: { ...base.annotationdefaults, arrowcolor: ink },
      colorway: [ink],
      dragmode: finger ? false : 'zoom', // a finger on a figure scrolls the page
      font: { ...base.font, color: ink, family },
      hoverlabel: { ...base.hoverlabel, bgcolor: ground, bordercolor: faint, font: { color: ink, family } },
      scene: {
        ...base.scene,
        dragmode: finger ? false : 'turntable',
        ...Object.fromEntries(['xaxis', 'yaxis', 'zaxis'].map((name) => [
          name, { ...base.scene?.[name], color: ink, gridcolor: faint },
        ])),
      },
      xaxis: { ...base.xaxis, ...axis },
      yaxis: { ...base.yaxis, ...axis },
    };
    return { ...template, layout };
  }

  // One figure: the frame in `spec` is overwritten, where it varies, with what belongs to the controls' setting.
  function figure(element) {
    const plot = element.querySelector('.nbx-plot');
    const spec = JSON.parse(element.querySelector('script').textContent);
    const controls = [...element.querySelectorAll('.nbx-controls [name]')].map(control);
    const ownTemplate = spec.layout.template;
    plot.querySelector('.nbx-words')?.remove(); // for programs without this script; `start` says it if drawing fails
    let draws = 0;

    function setFrame() {
      for (const [path, axes, values] of spec.vary ?? []) {
        const owner = path.slice(0, -1).reduce((node, key) => node[key] ??= {}, spec);
        owner[path.at(-1)] = values[axes.reduce((k, axis) => k * controls[axis].count + controls[axis].index, 0)];
      }
    }

    async function draw() {
      const Plotly = await plotly();
      setFrame();
      await Plotly.react(plot, spec.data, spec.layout, config);
      const say = element.querySelector('.nbx-say');
      if (say && say.textContent !== spec.say) say.textContent = spec.say;
      element.dataset.ready = ++draws;
    }

    // However fast a slider moves, at most one drawing a screen refresh.
    let waiting;
    const redraw = () => waiting ??= new Promise(requestAnimationFrame).then(() => {
      waiting = undefined;
      return draw();
    });

    const paint = () => {
      spec.layout.template = themed(ownTemplate, element);
      return draw();
    };

    let saving;
    function changed() {
      redraw();
      clearTimeout(saving); // browsers limit how often the address may change
      saving = setTimeout(() => history.replaceState(null, '', address(element.id, controls)), 250);
    }

    function set(values) {
      for (const one of controls) if (values.has(one.name)) one.choose(values.get(one.name));
      if (draws) redraw();
    }

    if (controls.length) {
      for (const one of controls) one.listen(changed);
      playing(element, controls, changed);
      element.querySelector('.nbx-reset').addEventListener('click', () => {
        for (const one of controls) one.reset();
        changed();
      });
    }
    async function start() {
      try {
        await paint();
        // plotly itself follows the window's width only, and the theme's sidebars change the column's.
        new ResizeObserver(() => window.Plotly.Plots.resize(plot)).observe(plot);
        element.querySelector('.nbx-controls')?.removeAttribute('disabled');
      } catch (error) {
        console.error(error);
        plot.textContent = `This figure could not be drawn. ${plot.getAttribute('aria-label')}`;
      }
    }
    return { element, start, set, repaint: () => draws && paint() };
  }

  // A range input or a select: both hold the index of a value; the texts are what is seen, and what is in an address.
  function control(input) {
    const output = input.parentElement.querySelector('output');
    const label = input.parentElement.querySelector('span').textContent;
    const texts = output ? input.dataset.texts.split(' ') : [...input.options].map((option) => option.text);
    const initial = input.value;
    const put = (index) => {
      input.value = index;
      if (!output) return;
      output.textContent = texts[index];
      input.setAttribute('aria-valuetext', `${label} = ${texts[index]}`);
    };
    return {
      name: input.name,
      count: texts.length,
      get index() { return Number(input.value); },
      get text() { return texts[input.value]; },
      put,
      reset: () => put(initial),
      choose: (text) => texts.includes(text) && put(texts.indexOf(text)),
      listen: (changed) => input.addEventListener('input', () => { put(input.value); changed(); }),
      onUse: (used) => input.addEventListener('input', used),
    };
  }

  // The button that moves the control last used through its values, from the start again if it is at its end.
  function playing(element, controls, changed) {
    const button = element.querySelector('.nbx-play');
    let timer;
    let [current] = controls;
    const stop = () => {
      clearInterval(timer);
      timer = undefined;
      button.textContent = 'Play';
    };
    const step = () => {
      current.put(Math.min(current.index + 1, current.count - 1)); // of one value it is the first and the last
      changed();
      if (current.index === current.count - 1) stop();
    };
    for (const one of controls) one.onUse(() => { current = one; stop(); });
    element.querySelector('.nbx-reset').addEventListener('click', stop);
    button.addEventListener('click', () => {
      if (timer) return stop();
      if (current.index === current.count - 1) {
        current.put(0);
        changed();
      }
      button.textContent = 'Pause';
      timer = setInterval(step, 400);
    });
  }

  // #name?alpha=2&noise=normal
  const address = (name, controls) => `#${name}?${new URLSearchParams(controls.map((one) => [one.name, one.text]))}`;

  function follow(figures, hash) {
    const [name, query] = hash.slice(1).split('?');
    const target = query && figures.find(({ element }) => element.id === name);
    if (!target) return;
    target.set(new URLSearchParams(query));
    target.element.scrollIntoView({ block: 'nearest' });
  }

  const figures = [...document.querySelectorAll('.nbx')].map(figure);
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      figures.find(({ element }) => element === target).start();
    }
  }, { rootMargin: '600px' });
  figures.forEach(({ element }) => near.observe(element));
  follow(figures, location.hash);
  addEventListener('hashchange', () => follow(figures, location.hash));
  // At once, not with the change of the address: there is none if a link leads to the present one, and before it
  // arrives the address may already be that of a slider moved a moment ago.
  document.addEventListener('click', ({ target }) => follow(figures, target.closest('a[href^="#"]')?.hash ?? ''));

  // The theme switch, and a system that turns dark at night, both end up in this attribute.
  new MutationObserver(() => figures.forEach(({ repaint }) => repaint()))
    .observe(document.documentElement, { attributeFilter: ['data-theme'] });
})();
