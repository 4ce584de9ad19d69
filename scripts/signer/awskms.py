#!/usr/bin/env python3
# Signs for modsign --key exec:./awskms.py with the key $AWSKMS_KEY of AWS KMS: its ID, its ARN
# or alias/NAME. It needs boto3 (Debian: python3-boto3), which finds the region and the
# credentials as the aws command does. They need kms:GetPublicKey and kms:Sign.
import base64, concurrent.futures, json, os, sys, threading
import boto3, botocore.config, botocore.exceptions

threads = 8
write = threading.Lock()

def sign(request):
    answer = {"id": request["id"]}
    algorithm = family + request["hash"].upper().replace("SHA", "SHA_", 1)
    try:
        if algorithm not in key["SigningAlgorithms"]:
            raise ValueError(key["KeySpec"] + " signs with " + ", ".join(key["SigningAlgorithms"]))
        signed = kms.sign(KeyId=key["KeyId"], Message=bytes.fromhex(request["digest"]), MessageType="DIGEST",
                          SigningAlgorithm=algorithm)
        answer["signature"] = base64.b64encode(signed["Signature"]).decode()
    except (ValueError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as e:
        answer["error"] = str(e)
    with write:
        print(json.dumps(answer), flush=True)

sys.stdin.readline()  # modsign's hello
try:
    kms = boto3.client("kms", endpoint_url=os.environ.get("AWS_ENDPOINT_URL_KMS"), config=botocore.config.Config(
        max_pool_connections=threads, retries={"mode": "standard", "max_attempts": 8}))
    key = kms.get_public_key(KeyId=os.environ["AWSKMS_KEY"])
except (KeyError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as e:
    sys.exit("awskms.py: %s" % e)
family = "RSASSA_PKCS1_V1_5_" if key["KeySpec"].startswith("RSA") else "ECDSA_"
print(json.dumps({"message_type": "hello", "version": 1, "max_in_flight": 2 * threads}), flush=True)
with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for line in sys.stdin:
        request = json.loads(line)
        if request["message_type"] not in ("module", "digest"):
            sys.exit("awskms.py: unknown message_type")
        pool.submit(sign, request)
