// The AI SDK, `ai`, with its Ollama provider `ai-sdk-ollama`.

import { Output, embedMany, generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';
import { createOllama } from 'ai-sdk-ollama';
import { ANSWER, LOOK_UP, lookUp, run } from './speak.mjs';

const provider = (url) => createOllama({ baseURL: url });

// The SDK tries again by itself where the provider says that it may; its default is left as it is.

async function chat({ url, model, text, tokens }) {
  const answer = await generateText({ model: provider(url)(model), prompt: text, maxOutputTokens: tokens });
  return { text: answer.text };
}

async function stream({ url, model, text, tokens }) {
  const leaving = new AbortController();
  const answer = streamText({
    model: provider(url)(model),
    prompt: text,
    maxOutputTokens: tokens,
    abortSignal: leaving.signal,
    // Errors come as parts of the stream; by default they are also printed.
    onError: () => {},
  });
  async function* texts() {
    for await (const part of answer.fullStream) {
      if (part.type === 'error') throw part.error;
      if (part.type === 'text-delta' && part.text) yield part.text;
    }
  }
  return { texts: texts(), leave: () => leaving.abort() };
}

async function tools({ url, model, text }) {
  const calls = [];
  const execute = (given) => {
    calls.push(given);
    return lookUp(given);
  };
  const look_up = tool({ description: 'Looks a word up.', inputSchema: jsonSchema(LOOK_UP), execute });
  const answer = await generateText({
    model: provider(url)(model),
    prompt: text,
    tools: { look_up },
    stopWhen: stepCountIs(2),
  });
  return { called: calls.length === 1 ? 'look_up' : null, arguments: calls[0], text: answer.text };
}

async function structured({ url, model, text }) {
  const output = Output.object({ schema: jsonSchema(ANSWER) });
  return (await generateText({ model: provider(url)(model), prompt: text, output })).output;
}

async function embed({ url, model, texts }) {
  return (await embedMany({ model: provider(url).embedding(model), values: texts })).embeddings;
}

await run('ai-sdk-ollama', { chat, stream, tools, structured, embed });
