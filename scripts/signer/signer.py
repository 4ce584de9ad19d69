#!/usr/bin/env python3
# Signs for modsign --key exec:./signer.py with the private key in the file $SIGNER_KEY.
import base64, json, os, subprocess, sys

sys.stdin.readline()  # modsign's hello
print('{"message_type":"hello","version":1,"max_in_flight":1}', flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["message_type"] not in ("module", "digest"):
        sys.exit("unknown message_type")
    openssl = subprocess.run(
        ["openssl", "pkeyutl", "-sign", "-inkey", os.environ["SIGNER_KEY"], "-pkeyopt", "digest:" + request["hash"]],
        input=bytes.fromhex(request["digest"]), capture_output=True)
    if openssl.returncode == 0:
        answer = {"id": request["id"], "signature": base64.b64encode(openssl.stdout).decode()}
    else:
        answer = {"id": request["id"], "error": openssl.stderr.decode()}
    print(json.dumps(answer), flush=True)
