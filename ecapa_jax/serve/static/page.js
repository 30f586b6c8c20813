// The page: three tabs, the model that answers, and the token where the service requires one.

import { ComparePanel } from "./compare.js";
import { PeoplePanel } from "./people.js";
import { Locked, call, useToken } from "./service.js";
import { Tabs } from "./tabs.js";
import { TalkPanel } from "./talk.js";

const at = (id) => document.getElementById(id);
const panels = [ComparePanel, TalkPanel, PeoplePanel].map((Panel) => new Panel({ onLocked: ask }));

async function start() {
  let model;
  try {
    model = await call("/v1/model");
  } catch (error) {
    if (error instanceof Locked) ask();
    else for (const panel of panels) panel.fail(error.message);
    return;
  }
  at("access").hidden = true;
  for (const panel of panels) panel.allow(model);
  at("model").textContent = `Model: ${model.name}, ${(model.parameters / 1e6).toFixed(1)} million parameters, voiceprints of ${model.embedding_dim} numbers`;
}

function ask() {
  at("access").hidden = false;
  at("token").focus();
}

new Tabs(document.querySelector("[role=tablist]"));
at("access").addEventListener("submit", (event) => { event.preventDefault(); useToken(at("token").value); start(); });
start();
