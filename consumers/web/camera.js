// The camera: a live view in the picture's frame, one button to take a picture, one to close it.

const $ = (id) => document.getElementById(id);

const REASONS = {
  NotAllowedError: "The browser was not allowed to use the camera. Allow it in the address bar and try again.",
  NotFoundError: "This machine has no camera.",
  NotReadableError: "The camera is in use by another program.",
};

/**
 * @param {{onPicture: (file: Blob) => void, onOpen: () => void, onClose: () => void}} callbacks
 * @throws {Error} with a message for the page's reader where there is no camera or no permission
 */
export async function openCamera({ onPicture, onOpen, onClose }) {
  const stream = await ask();
  const video = $("video");
  video.srcObject = stream;
  await video.play();
  onOpen();
  showControls(true);

  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    showControls(false);
  };
  $("close").onclick = () => {
    close();
    onClose();
  };
  $("shoot").onclick = async () => {
    const picture = await takePicture(video);
    close();
    onPicture(picture);
  };
}

async function ask() {
  if (!navigator.mediaDevices) throw new Error("This browser gives pages no camera; it needs localhost or https.");
  try {
    return await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(REASONS[error.name] ?? `The camera could not be opened: ${error.message}`);
  }
}

function takePicture(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return canvas.convertToBlob({ type: "image/png" }); // without loss: a camera's frame takes the path of any file
}

function showControls(open) {
  $("video").hidden = $("shoot").hidden = $("close").hidden = !open;
  $("choose").hidden = $("camera").hidden = open;
}
