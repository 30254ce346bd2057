"""A sentence-transformers server as people write it: aiohttp, one thread for the model, batches of 32."""

import asyncio
import base64
import functools
import sys
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device=sys.argv[3])
thread = ThreadPoolExecutor(1)
queue: asyncio.Queue = asyncio.Queue()


async def embed(request: web.Request) -> web.Response:
    texts = (await request.json())["input"]
    futures = [asyncio.get_running_loop().create_future() for _ in texts]
    for text, future in zip(texts, futures, strict=True):
        queue.put_nowait((text, future))
    rows = [base64.b64encode(vector.tobytes()).decode() for vector in await asyncio.gather(*futures)]
    return web.json_response({"data": [{"index": at, "embedding": row} for at, row in enumerate(rows)]})


async def batches(app: web.Application) -> None:
    while True:
        taken = [await queue.get()]
        while len(taken) < 32 and not queue.empty():
            taken.append(queue.get_nowait())
        texts = [text for text, _ in taken]
        encode = functools.partial(model.encode, texts, batch_size=32, normalize_embeddings=True)
        vectors = await asyncio.get_running_loop().run_in_executor(thread, encode)
        for (_, future), vector in zip(taken, vectors, strict=True):
            if not future.done():
                future.set_result(vector)


async def start(app: web.Application) -> None:
    app["batches"] = asyncio.create_task(batches(app))


app = web.Application(client_max_size=64 << 20)
app.router.add_post("/v1/embeddings", embed)
app.on_startup.append(start)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[2]), print=None)
