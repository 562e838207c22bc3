// The official OpenAI client for JavaScript, `openai`.

import OpenAI from 'openai';
import { ANSWER, TOOL, lookUp, run } from './speak.mjs';

// It insists on a key, which Ollama ignores.
const client = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: 'unused' });
const ask = (text) => [{ role: 'user', content: text }];

async function chat({ url, model, text, tokens }) {
  const completions = client(url).chat.completions;
  const answer = await completions.create({ model, messages: ask(text), max_tokens: tokens });
  return { text: answer.choices[0].message.content };
}

async function stream({ url, model, text, tokens }) {
  const completions = client(url).chat.completions;
  const parts = await completions.create({ model, messages: ask(text), max_tokens: tokens, stream: true });
  async function* texts() {
    for await (const part of parts) {
      const content = part.choices[0]?.delta.content;
      if (content) yield content;
    }
  }
  return { texts: texts(), leave: () => parts.controller.abort() };
}

async function tools({ url, model, text }) {
  const completions = client(url).chat.completions;
  const messages = ask(text);
  const { message } = (await completions.create({ model, messages, tools: [TOOL] })).choices[0];
  const call = message.tool_calls[0];
  const given = JSON.parse(call.function.arguments);
  messages.push(message, { role: 'tool', tool_call_id: call.id, content: lookUp(given) });
  const final = await completions.create({ model, messages, tools: [TOOL] });
  return { called: call.function.name, arguments: given, text: final.choices[0].message.content };
}

async function structured({ url, model, text }) {
  const format = { type: 'json_schema', json_schema: { name: 'answer', schema: ANSWER, strict: true } };
  const completions = client(url).chat.completions;
  const answer = await completions.parse({ model, messages: ask(text), response_format: format });
  return JSON.parse(answer.choices[0].message.content);
}

async function embed({ url, model, texts }) {
  const answer = await client(url).embeddings.create({ model, input: texts });
  return answer.data.map((entry) => entry.embedding);
}

async function models({ url }) {
  const names = [];
  for await (const entry of client(url).models.list()) names.push(entry.id);
  return names;
}

await run('openai', { chat, stream, tools, structured, embed, models });
