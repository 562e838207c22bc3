// The official JavaScript client, `ollama`.

import { Ollama } from 'ollama';
import { ANSWER, TOOL, lookUp, run } from './speak.mjs';

const ask = (text) => [{ role: 'user', content: text }];

async function chat({ url, model, text, tokens }) {
  const client = new Ollama({ host: url });
  const answer = await client.chat({ model, messages: ask(text), options: { num_predict: tokens } });
  return { text: answer.message.content };
}

async function stream({ url, model, text, tokens }) {
  const client = new Ollama({ host: url });
  const options = { num_predict: tokens };
  const parts = await client.chat({ model, messages: ask(text), options, stream: true });
  async function* texts() {
    for await (const part of parts) {
      if (part.message.content) yield part.message.content;
    }
  }
  return { texts: texts(), leave: () => parts.abort() };
}

async function tools({ url, model, text }) {
  const client = new Ollama({ host: url });
  const messages = ask(text);
  const { message } = await client.chat({ model, messages, tools: [TOOL] });
  const call = message.tool_calls[0].function;
  messages.push(message, { role: 'tool', tool_name: call.name, content: lookUp(call.arguments) });
  const final = await client.chat({ model, messages, tools: [TOOL] });
  return { called: call.name, arguments: call.arguments, text: final.message.content };
}

async function structured({ url, model, text }) {
  const answer = await new Ollama({ host: url }).chat({ model, messages: ask(text), format: ANSWER });
  return JSON.parse(answer.message.content);
}

const embed = async ({ url, model, texts }) =>
  (await new Ollama({ host: url }).embed({ model, input: texts })).embeddings;

const models = async ({ url }) => (await new Ollama({ host: url }).list()).models.map((entry) => entry.model);

await run('ollama', { chat, stream, tools, structured, embed, models });
